package main

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"routers/serve"
)

func main() {
	ok := func(c echo.Context) error { return c.String(http.StatusOK, "ok") }
	e := echo.New()
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			defer func() {
				if recover() != nil {
					err = echo.NewHTTPError(http.StatusInternalServerError, "recovered")
				}
			}()
			return next(c)
		}
	})
	e.GET("/users/:id", ok)
	e.GET("/static/page", ok)
	e.GET("/files/*", ok)
	e.Group("/api").GET("/orders/:id/items", ok)
	e.GET("/panic/:id", func(echo.Context) error { panic("on purpose") })
	e.GET("/inner/*", echo.WrapHandler(serve.Inner))
	serve.Run(e)
}
