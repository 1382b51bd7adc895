package main

import (
	"net/http"

	"github.com/gorilla/mux"

	"routers/serve"
)

func main() {
	r := mux.NewRouter()
	r.HandleFunc("/users/{id:[a-z0-9]+}", serve.OK).Methods("GET")
	r.HandleFunc("/static/page", serve.OK)
	r.PathPrefix("/files/").HandlerFunc(serve.OK)
	r.PathPrefix("/api").Subrouter().HandleFunc("/orders/{id}/items", serve.OK)
	r.HandleFunc("/panic/{id}", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	r.PathPrefix("/inner/").Handler(serve.Inner)
	serve.Run(r)
}
