package main

import (
	"net/http"

	"github.com/julienschmidt/httprouter"

	"routers/serve"
)

func main() {
	ok := func(w http.ResponseWriter, r *http.Request, _ httprouter.Params) { serve.OK(w, r) }
	r := httprouter.New()
	r.GET("/users/:id", ok)
	r.GET("/static/page", ok)
	r.GET("/files/*path", ok)
	r.GET("/api/orders/:id/items", ok)
	r.GET("/teams/team_:team/members/:member", ok)
	r.GET("/panic/:id", func(http.ResponseWriter, *http.Request, httprouter.Params) { panic(http.ErrAbortHandler) })
	r.Handler("GET", "/inner/*any", serve.Inner)
	serve.Run(r)
}
