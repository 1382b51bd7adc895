package main

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"routers/serve"
)

func main() {
	r := chi.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					w.WriteHeader(http.StatusInternalServerError)
				}
			}()
			next.ServeHTTP(w, r)
		})
	})
	r.Get("/users/{id}", serve.OK)
	r.Get("/static/page", serve.OK)
	r.Get("/files/*", serve.OK)
	r.Route("/api", func(r chi.Router) {
		r.Route("/orders/{id}", func(r chi.Router) { r.Get("/items", serve.OK) })
	})
	r.Get("/panic/{id}", func(http.ResponseWriter, *http.Request) { panic("on purpose") })
	r.Handle("/inner/*", serve.Inner)
	serve.Run(r)
}
