package sqltext

// dialect holds the rules of a database that decide where a literal begins
// and ends.
type dialect struct {
	// backslash: in '…' a backslash takes the meaning of the next character.
	backslash bool
	// backslashUnknown: it may or may not; a quote after one is in doubt.
	backslashUnknown bool
	// escapeStrings: E'…' has backslashes, whatever backslash says.
	escapeStrings bool
	doubleQuote   doubleQuote
	brackets      bool // [x] is an identifier
	hashComment   bool // # begins a comment
	dashNeedsGap  bool // -- begins a comment only before white space
	nested        bool // /* /* */ */
	dollarQuote   bool // $tag$ … $tag$
	dollarParam   bool // $1 is a placeholder
	colonNumber   bool // :1 is a placeholder
	altQuote      bool // q'[ … ]'
	tripleQuote   bool // """ … """ and ''' … '''
}

// doubleQuote says what "…" is.
type doubleQuote uint8

const (
	quotesIdentifier doubleQuote = iota
	quotesString
	// quotesEither: an identifier, but a string where none of that name exists
	// (SQLite); told apart by position, in doubt a string.
	quotesEither
)

var (
	ansi     = dialect{}
	postgres = dialect{escapeStrings: true, nested: true, dollarQuote: true, dollarParam: true}
	mysql    = dialect{backslash: true, doubleQuote: quotesString, hashComment: true, dashNeedsGap: true}
	sqlite   = dialect{doubleQuote: quotesEither, brackets: true, dollarParam: true, colonNumber: true}
	mssql    = dialect{brackets: true, nested: true}
	oracle   = dialect{colonNumber: true, altQuote: true}
	// Google's dialect, and with it other systems that read "…" as a string.
	spanner    = dialect{backslash: true, doubleQuote: quotesString, hashComment: true, tripleQuote: true}
	clickhouse = dialect{backslash: true, nested: true, dollarQuote: true}
	snowflake  = dialect{backslash: true, dollarQuote: true, colonNumber: true}
	unknown    = dialect{
		backslashUnknown: true, escapeStrings: true, doubleQuote: quotesEither,
		dollarQuote: true, dollarParam: true, colonNumber: true, altQuote: true,
	}
)

// dialectOf returns the dialect of a db.system.name. It is a switch and not a
// map because it is on the way of every hit.
func dialectOf(system string) *dialect {
	switch system {
	case "postgresql", "cockroachdb", "aws.redshift":
		return &postgres
	case "mysql", "mariadb":
		return &mysql
	case "sqlite":
		return &sqlite
	case "microsoft.sql_server":
		return &mssql
	case "oracle.db":
		return &oracle
	case "gcp.spanner":
		return &spanner
	case "clickhouse":
		return &clickhouse
	case "snowflake":
		return &snowflake
	case "trino", "sap.hana", "ibm.db2", "firebirdsql":
		return &ansi
	}
	return &unknown
}
