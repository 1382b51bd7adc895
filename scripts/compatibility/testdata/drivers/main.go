// Command drivers is a program with several database drivers, for the compatibility matrix:
// it is examined, and never run.
package main

import (
	"database/sql"
	"log"
	"net/http"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
)

func main() {
	var all []*sql.DB
	for _, name := range []string{"postgres", "pgx", "mysql"} {
		db, err := sql.Open(name, "")
		if err != nil {
			log.Fatal(err)
		}
		all = append(all, db)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, db := range all {
			if _, err := db.ExecContext(r.Context(), "SELECT 1"); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}
	})))
}
