package sqltext

import "strings"

// drivers are the beginnings of package paths of database/sql drivers, each
// with its db.system.name. Where the semantic conventions know no name for the
// system, it is its own in lower case, as they ask.
var drivers = []struct{ path, system string }{
	{"github.com/lib/pq", "postgresql"},
	{"github.com/jackc/pgx", "postgresql"},
	{"github.com/go-pg/pg", "postgresql"},
	{"github.com/uptrace/bun/driver/pgdriver", "postgresql"},
	{"gorm.io/driver/postgres", "postgresql"},
	{"github.com/jbarham/gopgsqldriver", "postgresql"},
	{"github.com/cockroachdb/cockroach-go", "cockroachdb"},
	{"github.com/go-sql-driver/mysql", "mysql"},
	{"github.com/go-mysql-org/go-mysql", "mysql"},
	{"github.com/ziutek/mymysql", "mysql"},
	{"github.com/mattn/go-sqlite3", "sqlite"},
	{"github.com/mutecomm/go-sqlcipher", "sqlite"},
	{"modernc.org/sqlite", "sqlite"},
	{"github.com/glebarez/go-sqlite", "sqlite"},
	{"github.com/glebarez/sqlite", "sqlite"},
	{"github.com/ncruces/go-sqlite3", "sqlite"},
	{"zombiezen.com/go/sqlite", "sqlite"},
	{"crawshaw.io/sqlite", "sqlite"},
	{"github.com/tursodatabase/", "sqlite"},
	{"github.com/libsql/", "sqlite"},
	{"github.com/rqlite/gorqlite", "sqlite"},
	{"github.com/microsoft/go-mssqldb", "microsoft.sql_server"},
	{"github.com/denisenkom/go-mssqldb", "microsoft.sql_server"},
	{"github.com/sijms/go-ora", "oracle.db"},
	{"github.com/godror/godror", "oracle.db"},
	{"github.com/mattn/go-oci8", "oracle.db"},
	{"github.com/ClickHouse/clickhouse-go", "clickhouse"},
	{"github.com/ClickHouse/ch-go", "clickhouse"},
	{"github.com/mailru/go-clickhouse", "clickhouse"},
	{"github.com/snowflakedb/gosnowflake", "snowflake"},
	{"github.com/googleapis/go-sql-spanner", "gcp.spanner"},
	{"github.com/cloudspannerecosystem/go-sql-spanner", "gcp.spanner"},
	{"github.com/trinodb/trino-go-client", "trino"},
	{"github.com/prestodb/presto-go-client", "presto"},
	{"github.com/nakagami/firebirdsql", "firebirdsql"},
	{"github.com/ibmdb/go_ibm_db", "ibm.db2"},
	{"github.com/SAP/go-hdb", "sap.hana"},
	{"github.com/thda/tds", "sybase"},
	{"github.com/Teradata/gosql-driver", "teradata"},
	{"github.com/vertica/vertica-sql-go", "vertica"},
	{"github.com/databricks/databricks-sql-go", "databricks"},
	{"github.com/marcboeker/go-duckdb", "duckdb"},
	{"github.com/duckdb/duckdb-go", "duckdb"},
	{"github.com/dolthub/driver", "mysql"},
	{"github.com/taosdata/driver-go", "tdengine"},
	{"github.com/ydb-platform/ydb-go-sdk", "ydb"},
	{"github.com/beltran/gohive", "hive"},
}

// SystemForDriver returns the db.system.name for the type of a driver's
// driver.Driver, driver.Connector or driver.Conn, qualified by its package
// path, such as "*github.com/lib/pq.conn"; "other_sql" if it is not known. The
// short form that package reflect prints, "*pq.conn", is understood for the
// drivers that it is unmistakable for.
func SystemForDriver(typeName string) string {
	name := strings.TrimLeft(typeName, "*")
	if i := strings.LastIndex(name, "/vendor/"); i >= 0 {
		name = name[i+len("/vendor/"):]
	}
	name = strings.TrimPrefix(name, "vendor/")
	for _, d := range drivers {
		if rest, ok := strings.CutPrefix(name, d.path); ok && (strings.HasSuffix(d.path, "/") || endsPath(rest)) {
			return d.system
		}
	}
	if pkg, _, ok := strings.Cut(name, "."); ok && !strings.Contains(name, "/") {
		if system, ok := shortNames[pkg]; ok {
			return system
		}
	}
	return "other_sql"
}

// endsPath tells whether rest, after the path of a module, belongs to it.
func endsPath(rest string) bool {
	return rest == "" || rest[0] == '.' || rest[0] == '/'
}

var shortNames = map[string]string{
	"pq": "postgresql", "pgx": "postgresql", "stdlib": "postgresql", "pgdriver": "postgresql",
	"mysql":   "mysql",
	"sqlite3": "sqlite", "sqlite": "sqlite", "libsql": "sqlite",
	"mssql":  "microsoft.sql_server",
	"go_ora": "oracle.db", "godror": "oracle.db", "oci8": "oracle.db",
	"clickhouse":    "clickhouse",
	"gosnowflake":   "snowflake",
	"spannerdriver": "gcp.spanner",
	"trino":         "trino",
	"firebirdsql":   "firebirdsql",
	"go_ibm_db":     "ibm.db2",
}
