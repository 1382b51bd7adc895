package main

import (
	"io"

	"github.com/gin-gonic/gin"

	"routers/serve"
)

func main() {
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultErrorWriter = io.Discard // stacks of recovered panics
	ok := func(c *gin.Context) { serve.OK(c.Writer, c.Request) }
	r := gin.New()
	r.Use(gin.Recovery(), func(c *gin.Context) { c.Next() })
	r.GET("/users/:id", ok)
	r.GET("/static/page", ok)
	r.GET("/files/*path", ok)
	r.Group("/api").GET("/orders/:id/items", ok)
	r.GET("/panic/:id", func(*gin.Context) { panic("on purpose") })
	r.GET("/inner/*any", gin.WrapH(serve.Inner))
	serve.Run(r)
}
