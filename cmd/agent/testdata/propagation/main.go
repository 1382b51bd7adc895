// Command propagation calls a service, and is that service in another process: each call
// has a number, and both ends keep what they have sent and received, byte by byte. The
// end-to-end tests compare these with each other and with the spans of the calls.
//
//	propagation receive   prints number and traceparent of each request
//	propagation send      makes calls when it is asked to
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: propagation receive|send [flags]")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "listen on `address`")
	dial := flags.String("dial", "", "connect to this `address` instead of the URL's")
	to := flags.String("to", "", "call the service at this `URL`")
	_ = flags.Parse(os.Args[2:])
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	var handler http.Handler
	switch os.Args[1] {
	case "receive":
		tap := &tap{Listener: ln, streams: map[string][]*stream{}}
		ln, handler = tap, newReceiver(tap)
	case "send":
		handler = newSender(*to, *dial)
	default:
		log.Fatal("neither receive nor send")
	}
	fmt.Printf("%s listens on http://%s\n", os.Args[1], ln.Addr())
	log.Fatal((&http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}).Serve(ln))
}
