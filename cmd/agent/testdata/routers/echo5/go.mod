module routers/echo5

go 1.25.0

require (
	github.com/labstack/echo/v5 v5.3.1
	routers v0.0.0
)

replace routers => ../
