package sqltext

import (
	"testing"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

func TestSystemForDriver(t *testing.T) {
	postgres := semconv.DBSystemNamePostgreSQL.Value.AsString()
	sqlite := semconv.DBSystemNameSQLite.Value.AsString()
	mssql := semconv.DBSystemNameMicrosoftSQLServer.Value.AsString()
	oracle := semconv.DBSystemNameOracleDB.Value.AsString()
	other := semconv.DBSystemNameOtherSQL.Value.AsString()
	tests := map[string]string{
		"github.com/lib/pq.Driver":                          postgres,
		"*github.com/lib/pq.conn":                           postgres,
		"*github.com/lib/pq.Connector":                      postgres,
		"*pq.conn":                                          postgres,
		"*github.com/jackc/pgx/v5/stdlib.Conn":              postgres,
		"*stdlib.Conn":                                      postgres,
		"*github.com/jackc/pgx/v4/stdlib.Driver":            postgres,
		"github.com/jackc/pgx/v5/stdlib":                    postgres,
		"*github.com/go-sql-driver/mysql.mysqlConn":         semconv.DBSystemNameMySQL.Value.AsString(),
		"*mysql.MySQLDriver":                                semconv.DBSystemNameMySQL.Value.AsString(),
		"*github.com/mattn/go-sqlite3.SQLiteConn":           sqlite,
		"*modernc.org/sqlite.conn":                          sqlite,
		"*github.com/glebarez/go-sqlite.Driver":             sqlite,
		"*github.com/ncruces/go-sqlite3/driver.conn":        sqlite,
		"*github.com/microsoft/go-mssqldb.Conn":             mssql,
		"*github.com/denisenkom/go-mssqldb.Driver":          mssql,
		"*github.com/sijms/go-ora/v2.Connection":            oracle,
		"*github.com/godror/godror.conn":                    oracle,
		"*github.com/ClickHouse/clickhouse-go/v2.stdDriver": semconv.DBSystemNameClickHouse.Value.AsString(),
		"*github.com/snowflakedb/gosnowflake.snowflakeConn": "snowflake",
		"*github.com/googleapis/go-sql-spanner.conn":        semconv.DBSystemNameGCPSpanner.Value.AsString(),
		"*github.com/trinodb/trino-go-client/trino.Conn":    semconv.DBSystemNameTrino.Value.AsString(),
		"*example.com/app/vendor/github.com/lib/pq.conn":    postgres,
		"*github.com/lib/pqx.conn":                          other,
		"*example.com/mysql.conn":                           other,
		"*github.com/DATA-DOG/go-sqlmock.sqlmock":           other,
		"":  other,
		"*": other,
	}
	for in, want := range tests {
		if got := SystemForDriver(in); got != want {
			t.Errorf("SystemForDriver(%q) = %q, want %q", in, got, want)
		}
	}
}
