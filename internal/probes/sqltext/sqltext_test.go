package sqltext

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// same stands for a text that comes back as it was.
const same = "\x00same"

func TestSanitize(t *testing.T) {
	tests := []struct{ system, in, text, summary string }{
		// Parameterized texts stay.
		{"postgresql", "SELECT id, name FROM items WHERE id = $1", same, "SELECT items"},
		{"postgresql", "select *\n\tfrom   public.items  i\nwhere i.id=$1 and i.name = ANY($2::text[]) limit $3;\n", same, "select public.items"},
		{"mysql", "SELECT `id` FROM `shop`.`items` WHERE `id` = ?", same, "SELECT `shop`.`items`"},
		{"microsoft.sql_server", "SELECT TOP (@n) [a]]b] FROM [dbo].[Order Details] WHERE x = @p1", same, "SELECT [dbo].[Order Details]"},
		{"oracle.db", "SELECT a FROM t WHERE b = :1 AND c=:2 AND d = :name", same, "SELECT t"},
		{"sqlite", `SELECT "id", "name" FROM "items" WHERE "items"."id" = ?1 AND "x" BETWEEN $a AND @b`, `SELECT "id", "name" FROM "items" WHERE "items"."id" = ?? AND "x" BETWEEN $a AND @b`, `SELECT "items"`},
		{"sqlite", "INSERT INTO items(name, price) VALUES (?, ?)", same, "INSERT items"},
		{"sqlite", "INSERT OR REPLACE INTO orders VALUES (?)", same, "INSERT orders"},
		{"sqlite", "INSERT OR FAIL INTO abort VALUES (?)", same, "INSERT abort"},
		{"sqlite", "UPDATE OR ROLLBACK orders SET a = ?", same, "UPDATE orders"},
		{"mysql", "REPLACE INTO orders VALUES (?)", same, "REPLACE orders"},
		{"postgresql", "CREATE OR REPLACE VIEW v AS SELECT a FROM t", same, "CREATE VIEW v SELECT t"},
		{"postgresql", `INSERT INTO "items" ("name") VALUES ($1) ON CONFLICT ("name") DO UPDATE SET "name" = EXCLUDED."name" RETURNING "id"`, same, `INSERT "items"`},
		// The examples of the semantic conventions.
		{"postgresql", "SELECT *\nFROM   wuser_table\nWHERE  username = ?", same, "SELECT wuser_table"},
		{"postgresql", "INSERT INTO shipping_details (order_id, address) SELECT order_id, address FROM orders WHERE order_id = ?", same, "INSERT shipping_details SELECT orders"},
		{"postgresql", "SELECT * FROM songs, artists WHERE songs.artist_id == artists.id", same, "SELECT songs artists"},
		{"postgresql", "SELECT order_date FROM (SELECT * FROM orders o JOIN customers c ON o.customer_id = c.customer_id)", same, "SELECT SELECT orders customers"},
		{"postgresql", "SELECT * FROM \"song list\", 'artists'", `SELECT * FROM "song list", ?`, `SELECT "song list"`},
		{"other_sql", "{call some_stored_procedure}", same, "call some_stored_procedure"},
		// Literals of each kind.
		{"postgresql", "SELECT 1", "SELECT ?", "SELECT"},
		{"postgresql", "SELECT -1.5e-3, +2, .5, 0xDEAD_BEEF, 0b101, 0o17, 1_000_000, 1e5", "SELECT -?, +?, .?, ?, ?, ?, ?, ?", "SELECT"},
		{"postgresql", "SELECT a-5, price/100, x%7 FROM t2 WHERE t2.c3>4", "SELECT a-?, price/?, x%? FROM t2 WHERE t2.c3>?", "SELECT t2"},
		{"postgresql", "SELECT * FROM t WHERE a = 'it''s' AND b = TRUE AND c IS NULL", "SELECT * FROM t WHERE a = ? AND b = ? AND c IS NULL", "SELECT t"},
		{"postgresql", `SELECT 'a\', secret FROM t`, "SELECT ?, secret FROM t", "SELECT t"},
		{"postgresql", `SELECT E'a\' secret', U&'d\0061t' , B'101', x'DEAD' FROM t`, "SELECT ?, ? , ?, ? FROM t", "SELECT t"},
		{"postgresql", "SELECT $$it's secret$$, $a$ $b$ secret $b$ $a$, a$b$c FROM t", "SELECT ?, ?, a$b$c FROM t", "SELECT t"},
		{"postgresql", "SELECT 1$a$ 'secret $a$ FROM t", "SELECT ? FROM t", "SELECT t"},
		{"postgresql", `SELECT "a""b" FROM "T" WHERE x = 'y'`, `SELECT "a""b" FROM "T" WHERE x = ?`, `SELECT "T"`},
		{"postgresql", "SELECT j->>'secret', j @> '{\"a\":1}', j ? 'k' FROM t WHERE a[1:2] = 3", "SELECT j->>?, j @> ?, j ? ? FROM t WHERE a[?:?] = ?", "SELECT t"},
		{"mysql", `SELECT "it's", 'a\'b', 'c''d', _utf8mb4'x' FROM t # don't` + "\nWHERE a = 5--1", "SELECT ?, ?, ?, ? FROM t #?\nWHERE a = ?--?", "SELECT t"},
		{"mysql", "INSERT INTO t VALUES ('a', 1), ('b', 2), (NULL, -3) ON DUPLICATE KEY UPDATE a = 'x'", "INSERT INTO t VALUES (?, ?) ON DUPLICATE KEY UPDATE a = ?", "INSERT t"},
		{"microsoft.sql_server", "SELECT N'secret', $12.50, [a'b] FROM #tmp WHERE x = 'c:\\'", "SELECT ?, ?, [a'b] FROM #tmp WHERE x = ?", "SELECT #tmp"},
		{"oracle.db", "SELECT q'[it's secret]', nq'!x'!' FROM dual WHERE a = DATE '2020-01-01'", "SELECT ?, ? FROM dual WHERE a = DATE ?", "SELECT dual"},
		{"oracle.db", "ALTER USER bob IDENTIFIED BY secret REPLACE \"oldsecret\"", "ALTER USER bob IDENTIFIED BY ? REPLACE \"oldsecret\"", "ALTER USER bob"},
		{"sqlite", `SELECT * FROM items WHERE "name" = "bob" AND x IN ("a","b") AND y BETWEEN "c" AND "d"`, `SELECT * FROM items WHERE "name" = ? AND x IN (?) AND y BETWEEN ? AND ?`, "SELECT items"},
		{"sqlite", `INSERT INTO "t" ("a", "b") VALUES ("secret", "more")`, `INSERT INTO "t" ("a", "b") VALUES (?, ?)`, `INSERT "t"`},
		{"sqlite", `CREATE TABLE IF NOT EXISTS "t" ("id" integer, "name" text DEFAULT "x")`, `CREATE TABLE IF NOT EXISTS "t" ("id" integer, "name" text DEFAULT ?)`, `CREATE TABLE "t"`},
		{"other_sql", `SELECT 'a\' secret' FROM t`, "SELECT ?", "SELECT"},
		{"gcp.spanner", `SELECT """it's "quoted" secret""" FROM t`, "SELECT ? FROM t", "SELECT t"},
		// Comments.
		{"postgresql", "-- name: GetUser :one\nSELECT a FROM t WHERE id = $1", same, "SELECT t"},
		{"postgresql", "-- name: secret data :one\nSELECT a FROM t", "--?\nSELECT a FROM t", "SELECT t"},
		{"postgresql", "SELECT a /* /* it's */ secret */ FROM t /*traceparent='00-4bf9'*/ -- bob", "SELECT a /*?*/ FROM t /*?*/ --?", "SELECT t"},
		{"mysql", "SELECT a FROM t /* x /* y */ WHERE b='secret'", "SELECT a FROM t /*?*/ WHERE b=?", "SELECT t"},
		// Lists.
		{"postgresql", "SELECT a FROM t WHERE id IN (1,2, 3) AND n IN ($1, $2)", "SELECT a FROM t WHERE id IN (?) AND n IN ($1, $2)", "SELECT t"},
		{"mysql", "SELECT a FROM t WHERE id IN (" + strings.Repeat("?,", 40) + "?)", "SELECT a FROM t WHERE id IN (?)", "SELECT t"},
		// Summaries.
		{"postgresql", "WITH a AS (SELECT 1 FROM x), b (c) AS MATERIALIZED (SELECT 2 FROM a) UPDATE y SET z = b.c FROM b WHERE y.i = b.i", "WITH a AS (SELECT ? FROM x), b (c) AS MATERIALIZED (SELECT ? FROM a) UPDATE y SET z = b.c FROM b WHERE y.i = b.i", "SELECT x SELECT UPDATE y"},
		{"postgresql", "WITH d AS (DELETE FROM a WHERE b = $1 RETURNING *) INSERT INTO c SELECT * FROM d", same, "DELETE a INSERT c SELECT"},
		{"postgresql", "SELECT extract(epoch FROM ts), trim(both from x) FROM a WHERE x IS DISTINCT FROM y FOR UPDATE", same, "SELECT a"},
		{"postgresql", "SELECT a FROM t1 LEFT JOIN t2 ON t1.a = t2.a, t3 WHERE EXISTS (SELECT 1 FROM t4) UNION ALL SELECT b FROM t5", "SELECT a FROM t1 LEFT JOIN t2 ON t1.a = t2.a, t3 WHERE EXISTS (SELECT ? FROM t4) UNION ALL SELECT b FROM t5", "SELECT t1 t2 t3 SELECT t4 SELECT t5"},
		{"postgresql", "BEGIN", same, "BEGIN"},
		{"postgresql", "begin; update a set b = $1; commit", same, "begin update a commit"},
		{"postgresql", "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)", same, "CREATE INDEX i"},
		{"postgresql", "DROP TABLE IF EXISTS a.b CASCADE", same, "DROP TABLE a.b"},
		{"postgresql", "TRUNCATE TABLE ONLY t", same, "TRUNCATE t"},
		{"postgresql", "EXPLAIN SELECT * FROM t", same, "EXPLAIN SELECT t"},
		{"postgresql", "INSERT INTO t (comment, \"start\", set) VALUES ($1, $2, $3)", same, "INSERT t"},
		{"postgresql", "DELETE FROM a USING b WHERE a.x = b.x", same, "DELETE a b"},
		{"postgresql", "SET search_path TO 'x'", "SET search_path TO ?", "SET"},
		{"postgresql", "COPY items (id, name) FROM STDIN", same, "COPY items"},
		{"microsoft.sql_server", "MERGE INTO a AS x USING b ON x.i=b.i WHEN MATCHED THEN UPDATE SET v=1;", "MERGE INTO a AS x USING b ON x.i=b.i WHEN MATCHED THEN UPDATE SET v=?;", "MERGE a b"},
		{"microsoft.sql_server", "EXEC sp_executesql N'SELECT secret', @p1", "EXEC sp_executesql ?, @p1", "EXEC sp_executesql"},
		{"sqlite", "PRAGMA foreign_keys = ON", same, "PRAGMA foreign_keys"},
		{"mysql", "REPLACE INTO t (a) VALUES (?)", same, "REPLACE t"},
		{"other_sql", "hello world", same, ""},
		{"other_sql", "", same, ""},
		{"postgresql", "SELECT pg_sleep(3)", "SELECT pg_sleep(?)", "SELECT"},
		{"postgresql", "SELECT\x00 'a' FROM t", "SELECT\x00 ? FROM t", "SELECT t"},
		{"postgresql", "SELECT ä, 'é' FROM straße", "SELECT ä, ? FROM straße", "SELECT straße"},
		{"postgresql", "SELECT a FROM generate_series(1, 10)", "SELECT a FROM generate_series(?, ?)", "SELECT generate_series"},
		// postgres_exporter, against a real server.
		{"postgresql", "SELECT pg_database.datname, pg_database_size(pg_database.datname) as size FROM pg_database", same, "SELECT pg_database"},
		{"postgresql", "SELECT name, setting, COALESCE(unit, ''), short_desc, vartype FROM pg_settings WHERE vartype IN ('bool', 'integer', 'real');", "SELECT name, setting, COALESCE(unit, ?), short_desc, vartype FROM pg_settings WHERE vartype IN (?);", "SELECT pg_settings"},
	}
	for _, tt := range tests {
		t.Run(tt.system+"/"+tt.in[:min(len(tt.in), 40)], func(t *testing.T) {
			want := tt.text
			if want == same {
				want = tt.in
			}
			got := Sanitize(tt.in, false, tt.system)
			if got.Text != want {
				t.Errorf("text of %q\n got %q\nwant %q", tt.in, got.Text, want)
			}
			if got.Summary != tt.summary {
				t.Errorf("summary of %q\n got %q\nwant %q", tt.in, got.Summary, tt.summary)
			}
			if got.Operation != strings.Split(tt.summary, " ")[0] {
				t.Errorf("operation %q of summary %q", got.Operation, tt.summary)
			}
		})
	}
}

// hidden are strings that no part of may be seen, by the dialects that read
// them as one literal or comment. The marker is "zq" and digits.
var hidden = map[string][]string{
	"postgresql": {
		"'zq1'", "'zq1''zq2'", `'zq1\'`, `E'zq1\'zq2'`, "$$zq1'zq2$$", "$t$zq1$$zq2$t$", "/*zq1'*/", "--zq1'\n",
		"/*zq/*zq1*/zq2*/", "U&'\\zq1'", "N'zq'", "x'7712'", "7712", "7712.5e7712", "0x7712", "1_7712", "1e7712", "'zq1\nzq2'",
	},
	"mysql": {
		"'zq1'", `'zq1\'zq2'`, `"zq1"`, `"zq1\"zq2'"`, "'zq1''zq2'", "#zq1'\n", "-- zq1'\n", "/*zq1'*/", "_utf8'zq'", "0x7712", "7712", `"zq1""zq2"`,
	},
	"sqlite":               {"'zq1'", `'zq1\'`, `= "zq1"`, `IN ("zq1", "zq2")`, "--zq\n", "/*zq*/", "x'7712'", "7712", `LIKE "zq%"`, `IN(1,"zq")`},
	"microsoft.sql_server": {"N'zq1'", "'zq1\\'", "'zq''zq'", "0x7712", "$7712.12", "--zq'\n", "/*zq'/*zq*/'zq*/", "7712"},
	"oracle.db":            {"q'[zq'1]'", "Q'!zq'!'", "nq'{zq}'", "'zq1\\'", "7712", "7712.5", "IDENTIFIED BY zq", `IDENTIFIED BY "zq"`},
	"other_sql":            {"'zq1'", `'zq\'zq'`, `"zq\"zq'"`, `= "zq"`, "'zq''zq'", "7712", "$$zq$$", "/*zq*/"},
	"gcp.spanner":          {`"zq"`, `'''zq'zq'''`, `"""zq"zq"""`, `r'zq'`, `b"zq"`, `'zq\'zq'`, "7712"},
}

var plain = []string{
	"SELECT", "FROM", "WHERE", "a", "b.c", "t1", "=", "AND", "(", ")", ",", ", ", " ", "\n", ";", "IN (", "VALUES (", "$1", "?", ":n", "@p1",
	"+", "-", "/", "*", "%", "NULL", "AS", "LIMIT", "e", "n", "U", "&", "x", "ä", "::", "INSERT INTO t", ".", "JOIN", "#", "<>", "!", "|",
}

// TestNothingSurvives puts literals into random surroundings, whole and cut at
// every place, and looks for what was in them.
func TestNothingSurvives(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	n := 2000
	if testing.Short() {
		n = 200
	}
	for system, literals := range hidden {
		for range n {
			var b strings.Builder
			for range 1 + rnd.IntN(12) {
				b.WriteString(plain[rnd.IntN(len(plain))])
				b.WriteByte(' ')
				if rnd.IntN(2) == 0 {
					b.WriteString(literals[rnd.IntN(len(literals))])
					if rnd.IntN(4) > 0 {
						b.WriteByte(' ')
					}
				}
			}
			text := b.String()
			checkHidden(t, system, text, false)
			checkHidden(t, system, text[:rnd.IntN(len(text)+1)], true)
		}
	}
}

func checkHidden(t *testing.T, system, text string, truncated bool) {
	t.Helper()
	q := Sanitize(text, truncated, system)
	for _, marker := range []string{"zq", "771"} {
		if strings.Contains(q.Text, marker) || strings.Contains(q.Summary, marker) {
			t.Fatalf("%s: literal survives (truncated %v)\n   in %q\ntext %q\n sum %q", system, truncated, text, q.Text, q.Summary)
		}
	}
	if len(q.Summary) > maxSummary {
		t.Fatalf("summary of %d bytes", len(q.Summary))
	}
}

func TestTruncated(t *testing.T) {
	text := `SELECT a FROM t WHERE b = 'se'`
	for i := range len(text) {
		if q := Sanitize(text[:i], true, "postgresql"); strings.Contains(q.Text, "'") {
			t.Errorf("cut at %d: %q", i, q.Text)
		}
	}
	if q := Sanitize("SELECT ä"[:8], true, "mysql"); q.Text != "SELECT " {
		t.Errorf("half a character: %q", q.Text)
	}
	if q := Sanitize("-- name: Sec", true, "postgresql"); q.Text != "--?" {
		t.Errorf("half a comment: %q", q.Text)
	}
	if q := Sanitize("SELECT "+strings.Repeat("x", 2*maxText), false, "postgresql"); len(q.Text) > maxText {
		t.Errorf("text of %d bytes", len(q.Text))
	}
}

func TestBoundedTime(t *testing.T) {
	for _, piece := range []string{
		"'", "\"", "$", "$a", "$1", "(", ")", "[", "`", "-", "--", "/*", "*/", "a/", "1", "1$", "a$", "\x00", "\\", "#", ".", "@", "@@", ":", "?",
		"IN (", "IN (1,1),", "VALUES (1),", "(1),", `,"a"`, `("a"`, "q'", "e'", "\xff", "ä", "SELECT ", "WITH a AS (", "''", "$$", "1e", "x.", "U&'",
	} {
		text := strings.Repeat(piece, maxText/len(piece))
		for _, system := range append(slices.Collect(maps.Keys(hidden)), "clickhouse", "snowflake", "trino") {
			start := time.Now()
			Sanitize(text, false, system)
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: %d times %q took %v", system, maxText/len(piece), piece, d)
			}
		}
	}
}

func TestCache(t *testing.T) {
	c := New(4)
	text := "SELECT a FROM t WHERE b = 'x'"
	buffer := []byte(text + " and more")
	q := c.Query(string(buffer[:len(text)]), false, "mysql")
	for i := range buffer {
		buffer[i] = 'z'
	}
	if again := c.Query(text, false, "mysql"); again != q || q.Text != "SELECT a FROM t WHERE b = ?" {
		t.Errorf("got %+v, then %+v", q, again)
	}
	for i := range 10 {
		c.Query(fmt.Sprint("SELECT a FROM t", i), false, "mysql")
	}
	if n, _ := c.Len(); n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
	c.Query("SELECT "+strings.Repeat("b", 3000), false, "mysql")
	if n, b := c.Len(); b > 4*bytesPerEntry || n == 0 {
		t.Errorf("%d entries of %d bytes", n, b)
	}
	c.Query("SELECT "+strings.Repeat("c", 5000), false, "mysql") // too large to be kept
	total := 0
	c.Query("SELECT 1", true, "no such system")
	for _, k := range c.lru.Keys() {
		v, _ := c.lru.Peek(k)
		total += cost(k, v)
	}
	if _, b := c.Len(); b != total {
		t.Errorf("%d bytes counted, %d held", b, total)
	}
	hit := "SELECT a, b, c FROM t WHERE d = ? AND e = ?"
	c.Query(hit, false, "mysql")
	if n := testing.AllocsPerRun(100, func() { c.Query(hit, false, "mysql") }); n != 0 {
		t.Errorf("a hit allocates %v times", n)
	}
}

func FuzzSanitize(f *testing.F) {
	for system, list := range hidden {
		for _, l := range list {
			f.Add("SELECT "+l+" FROM t", system, false)
		}
	}
	f.Fuzz(func(t *testing.T, text, system string, truncated bool) {
		q := Sanitize(text, truncated, system)
		if !utf8.ValidString(q.Text) || !utf8.ValidString(q.Summary) {
			t.Errorf("invalid UTF-8 from %q", text)
		}
		if len(q.Summary) > maxSummary*3 {
			t.Errorf("summary of %d bytes", len(q.Summary))
		}
		var b strings.Builder
		cut := text[:min(len(text), maxText)]
		for _, tok := range scan(cut, dialectOf(system)) {
			b.WriteString(tok.text)
		}
		if b.String() != cut {
			t.Errorf("tokens of %q give %q", cut, b.String())
		}
	})
}

// FuzzHidden fuzzes the surroundings of literals: no text before one that is
// itself complete may make it visible.
func FuzzHidden(f *testing.F) {
	f.Add("SELECT a, ", " FROM t", 3)
	f.Fuzz(func(t *testing.T, before, after string, n int) {
		if strings.ContainsAny(before, "'\"`$[]/-#\\{}\x00") || strings.Contains(before, "zq") || strings.Contains(before+after, "771") || strings.Contains(after, "zq") {
			return
		}
		for system, list := range hidden {
			l := list[uint(n)%uint(len(list))]
			checkHidden(t, system, before+" "+l+" "+after, false)
		}
	})
}

func BenchmarkHit(b *testing.B) {
	c := New(100)
	text := "SELECT id, name, price, created_at FROM items WHERE category = $1 AND price < $2 ORDER BY price LIMIT $3"
	c.Query(text, false, "postgresql")
	b.ReportAllocs()
	for b.Loop() {
		c.Query(text, false, "postgresql")
	}
}

func BenchmarkMiss(b *testing.B) {
	text := "SELECT id, name, price, created_at FROM items WHERE category = 'books' AND price < 12.5 ORDER BY price LIMIT 10"
	b.ReportAllocs()
	for b.Loop() {
		Sanitize(text, false, "postgresql")
	}
}
