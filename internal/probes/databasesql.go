package probes

import (
	"encoding/binary"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/gobin"
	"github.com/plainframework/agent/internal/probes/sqltext"
)

// databaseSQL is the client span of a query or statement; bpf/databasesql.bpf.c says
// where it begins and ends.
var databaseSQL = library{
	name:    "database/sql",
	givenUp: givenUpSQL,
	groups: []group{
		sqlThroughRetry("DB", bpf.AgentSqlHandleSQL_DB),
		sqlThroughRetry("Stmt", bpf.AgentSqlHandleSQL_STMT),
		sqlThroughReturn("DB", bpf.AgentSqlHandleSQL_DB),
		sqlThroughReturn("Stmt", bpf.AgentSqlHandleSQL_STMT),
		sqlDirect("Tx", bpf.AgentSqlHandleSQL_TX, "closemuRUnlockRelease"),
		sqlDirect("Conn", bpf.AgentSqlHandleSQL_CONN, "closemuRUnlockCondReleaseConn"),
		sqlCrash,
	},
	layoutMap: "sql_layouts",
	layout: func(l *layouts) any {
		layout := &bpf.AgentSqlLayout{DbConnector: l.offset("database/sql.DB", "connector")}
		// A program that never uses a type may have no descriptor of it.
		if hasEither(l.binary, "database/sql.(*Stmt).") {
			layout.StmtDb, layout.StmtQuery = l.offset("database/sql.Stmt", "db"), l.offset("database/sql.Stmt", "query")
		}
		if hasEither(l.binary, "database/sql.(*Tx).") {
			layout.TxDb = l.offset("database/sql.Tx", "db")
		}
		if hasEither(l.binary, "database/sql.(*Conn).") {
			layout.ConnDb = l.offset("database/sql.Conn", "db")
		}
		// Not there where every driver brings its own connector.
		if addr, err := l.binary.TypeAddr("database/sql.dsnConnector"); err == nil {
			layout.DsnConnectorType = addr
			layout.DsnConnectorDriver = l.offset("database/sql.dsnConnector", "driver")
		}
		return layout
	},
	metrics: []metric{{
		kind: uint32(bpf.AgentSqlKindRECORD_SQL),
		slot: 1,
		name: "db.client.operation.duration", unit: "s",
		description: "Duration of database client operations.",
		bounds:      []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10},
		attributes:  sqlSeries,
	}},
	records: map[uint32]decoder{
		uint32(bpf.AgentSqlKindRECORD_SQL): decodeSQL,
	},
}

// sqlCrash ends the operation of a goroutine that brings the process down. These run once
// in the life of a process at most.
var sqlCrash = group{
	name: "crash",
	when: func(b *gobin.Binary) bool {
		for _, typ := range []string{"DB", "Stmt", "Tx", "Conn"} {
			if hasEither(b, "database/sql.(*"+typ+").") {
				return true
			}
		}
		return false
	},
	hooks: []hook{
		{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_CRASH), sites: entry("runtime.fatalpanic"), optional: true},
		{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_CRASH), sites: entry("runtime.fatalthrow"), optional: true},
	},
}

const sqlRetry = "database/sql.(*DB).retry"

func hasRetry(b *gobin.Binary) bool { return has(b, sqlRetry) }

func hasEither(b *gobin.Binary, method string) bool {
	return has(b, method+"QueryContext") || has(b, method+"ExecContext")
}

// sqlThroughRetry covers the methods of DB and Stmt from Go 1.20 on. The first site
// is passed by every operation, the second after an error, the third hardly ever.
func sqlThroughRetry(typ string, handle bpf.AgentSqlHandle) group {
	method := "database/sql.(*" + typ + ")."
	try := gobin.Call{Indirect: true}
	isBad := gobin.Call{Callee: "errors.Is"}
	return group{
		name: typ,
		when: func(b *gobin.Binary) bool { return hasRetry(b) && hasEither(b, method) },
		hooks: []hook{
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETRY_LAST), sites: inFunc(sqlRetry, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
				return b.ReturnAfter(f, gobin.Call{Indirect: true, N: -1}, inRegisters(0, 1))
			})},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETRY_DECISION), sites: inFunc(sqlRetry, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
				return b.AfterCall(f, isBad, inRegisters(0))
			})},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETRY_RESULT), sites: inFunc(sqlRetry, func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
				return b.AfterCall(f, try, inRegisters(0, 1))
			})},
			{program: "sql_begin", variant: uint8(handle), sites: entry(method + "QueryContext"), prunable: true},
			{program: "sql_begin", variant: uint8(handle | bpf.AgentSqlHandleSQL_VARIANT_EXEC), sites: entry(method + "ExecContext"), prunable: true},
		},
	}
}

// sqlThroughReturn covers DB and Stmt up to Go 1.19, where each method has the loop
// of tries in itself.
func sqlThroughReturn(typ string, handle bpf.AgentSqlHandle) group {
	method := "database/sql.(*" + typ + ")."
	return group{
		name: typ,
		when: func(b *gobin.Binary) bool { return !hasRetry(b) && hasEither(b, method) },
		hooks: []hook{
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETURN_QUERY), sites: returns(method + "QueryContext"), prunable: true},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETURN_EXEC), sites: returns(method + "ExecContext"), prunable: true},
			{program: "sql_begin", variant: uint8(handle), sites: entry(method + "QueryContext"), prunable: true},
			{program: "sql_begin", variant: uint8(handle | bpf.AgentSqlHandleSQL_VARIANT_EXEC), sites: entry(method + "ExecContext"), prunable: true},
		},
	}
}

// sqlDirect covers Tx and Conn, which hold their connection already.
func sqlDirect(typ string, handle bpf.AgentSqlHandle, release string) group {
	method := "database/sql.(*" + typ + ")."
	grab := gobin.Call{Callee: method + "grabConn"}
	noConn := func(b *gobin.Binary, f *gobin.Func) (gobin.Site, error) {
		return b.ErrorPath(f, grab, 2, inRegisters(2, 3))
	}
	return group{
		name: typ,
		when: func(b *gobin.Binary) bool { return hasEither(b, method) },
		hooks: []hook{
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RELEASE), sites: entry(method + release + "-fm")},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_ROWS), sites: entry("database/sql.(*Rows).initContextClose"), prunable: true, choice: choiceRows},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_RETURN_DIRECT), sites: returns(method + "QueryContext"), prunable: true, choice: choiceReturn},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_NO_CONNECTION), sites: inFunc(method+"QueryContext", noConn), prunable: true},
			{program: "sql_end", variant: uint8(bpf.AgentSqlEndSiteSQL_NO_CONNECTION), sites: inFunc(method+"ExecContext", noConn), prunable: true},
			{program: "sql_begin", variant: uint8(handle), sites: entry(method + "QueryContext"), prunable: true},
			{program: "sql_begin", variant: uint8(handle | bpf.AgentSqlHandleSQL_VARIANT_EXEC), sites: entry(method + "ExecContext"), prunable: true},
		},
	}
}

// sqlErrorCodes says where the errors of drivers keep the database's own code. Codes
// are not personal data, messages may be: those are not read.
var sqlErrorCodes = []errorCode{
	{"*github.com/lib/pq.Error", "github.com/lib/pq.Error", "Code", bpf.AgentTypeRoleTYPE_ERROR_CODE_STRING},
	{"*github.com/jackc/pgx/v5/pgconn.PgError", "github.com/jackc/pgx/v5/pgconn.PgError", "Code", bpf.AgentTypeRoleTYPE_ERROR_CODE_STRING},
	{"*github.com/jackc/pgconn.PgError", "github.com/jackc/pgconn.PgError", "Code", bpf.AgentTypeRoleTYPE_ERROR_CODE_STRING},
	{"*github.com/go-sql-driver/mysql.MySQLError", "github.com/go-sql-driver/mysql.MySQLError", "Number", bpf.AgentTypeRoleTYPE_ERROR_CODE_U16},
	{"github.com/microsoft/go-mssqldb.Error", "github.com/microsoft/go-mssqldb.Error", "Number", bpf.AgentTypeRoleTYPE_ERROR_CODE_I32},
	{"github.com/mattn/go-sqlite3.Error", "github.com/mattn/go-sqlite3.Error", "Code", bpf.AgentTypeRoleTYPE_ERROR_CODE_I32},
	{"*modernc.org/sqlite.Error", "modernc.org/sqlite.Error", "code", bpf.AgentTypeRoleTYPE_ERROR_CODE_I32},
}

// errorCode is a field of an error type that holds a code.
type errorCode struct {
	dynamicType string // as the error interface holds it
	structName  string
	field       string
	role        bpf.AgentTypeRole
}

func decodeSQL(d *decoding, raw []byte, span *event.Span) error {
	r, payload, err := recordAs[bpf.AgentSqlRecord](raw)
	if err != nil {
		return err
	}
	span.Kind = trace.SpanKindClient
	body := &r.Body
	system := d.dbSystem(body.Key.Detail[0])
	d.str("db.system.name", system)
	span.Name = system

	text := payload[:min(int(body.TextLen), len(payload))]
	if len(text) > 0 {
		q := d.sql.Query(validText(text), int(body.TextLen) > len(text), system)
		d.str("db.query.text", q.Text)
		if q.Summary != "" {
			d.str("db.query.summary", q.Summary)
			span.Name = q.Summary
		}
		if q.Operation != "" {
			d.str("db.operation.name", q.Operation)
		}
	}
	if bpf.AgentSpanFlags(r.Header.Flags)&bpf.AgentSpanFlagsSPAN_CRASHED != 0 {
		span.Status = codes.Error
		d.str("error.type", crashType)
	}
	if body.Key.ErrorType != 0 {
		span.Status = codes.Error
		d.str("error.type", d.sqlErrorType(body.Key.ErrorType))
		if code := sqlCode(body.Key.Detail[1], body.CodeRole); code != "" {
			d.str("db.response.status_code", code)
		}
	}
	return nil
}

func (d *decoding) sqlErrorType(addr uint64) string {
	if name := d.errorType(addr); name != "" {
		return name
	}
	return "_OTHER"
}

// sqlSeries names the attributes of a series; its details are the driver's type and
// the code of the error.
func sqlSeries(d *decoding, key *bpf.AgentSeriesKey, s *bpf.AgentSeries) []attribute.KeyValue {
	system := d.dbSystem(key.Detail[0])
	attrs := []attribute.KeyValue{attribute.String("db.system.name", system)}
	if text, cut := textOf(s); text != "" {
		if q := d.sql.Query(text, cut, system); q.Summary != "" {
			attrs = append(attrs, attribute.String("db.query.summary", q.Summary))
		}
	}
	if key.ErrorType != 0 {
		attrs = append(attrs, attribute.String("error.type", d.sqlErrorType(key.ErrorType)))
	}
	if code := sqlCode(key.Detail[1], uint32(s.Extra)); code != "" {
		attrs = append(attrs, attribute.String("db.response.status_code", code))
	}
	return attrs
}

// sqlCode is the database's own code of an error: a SQLSTATE or a number.
func sqlCode(code uint64, role uint32) string {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], code)
	switch bpf.AgentTypeRole(role) {
	case bpf.AgentTypeRoleTYPE_ERROR_CODE_STRING:
		return strings.TrimRight(validText(b[:]), "\x00")
	case bpf.AgentTypeRoleTYPE_ERROR_CODE_U16:
		return strconv.Itoa(int(uint16(code)))
	case bpf.AgentTypeRoleTYPE_ERROR_CODE_I32:
		return strconv.Itoa(int(int32(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)))
	}
	return ""
}

// dbSystem is the db.system.name of a driver's type; types of one binary are few.
func (d *decoding) dbSystem(driver uint64) string {
	driverType := d.typeName(driver)
	if driverType == "" {
		return "other_sql"
	}
	system, ok := d.systems[driverType]
	if !ok {
		system = sqltext.SystemForDriver(driverType)
		d.systems[driverType] = system
	}
	return system
}
