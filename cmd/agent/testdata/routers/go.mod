module routers

go 1.22
