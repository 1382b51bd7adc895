module drivers

go 1.21

require (
	github.com/go-sql-driver/mysql v1.5.0
	github.com/jackc/pgx/v5 v5.0.0
	github.com/lib/pq v1.10.0
)

require (
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20200714003250-2b9c44734f2b // indirect
	golang.org/x/crypto v0.0.0-20220829220503-c86fa9a7ed90 // indirect
	golang.org/x/text v0.3.7 // indirect
)
