// Package serve runs the router of a test program. The header Via of a request says what
// stands before the router, as it may in a service.
package serve

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Inner is a handler that routes once more, by ServeMux.
var Inner = http.NewServeMux()

func init() {
	Inner.HandleFunc("/inner/deep/", OK)
}

// OK answers with 200.
func OK(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) }

type key struct{}

// Run serves until the process is killed.
func Run(router http.Handler) {
	outer := http.NewServeMux()
	outer.Handle("/", router)
	via := map[string]http.Handler{
		"":        router,
		"mux":     outer,
		"timeout": http.TimeoutHandler(router, time.Minute, "late"),
		"prefix":  http.StripPrefix("/v1", router),
		"context": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			router.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, 1)))
		}),
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("router listens on http://%s\n", ln.Addr())
	http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		via[r.Header.Get("Via")].ServeHTTP(w, r)
	}))
}
