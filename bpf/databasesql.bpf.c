//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * database/sql: the client span of a query or statement.
 *
 *   begin  (*DB|Stmt|Tx|Conn).{Query,Exec}Context
 *   end    of DB and Stmt, from Go 1.20: in (*DB).retry, which runs up to three tries:
 *            after a try          no error: this was the last one
 *            after errors.Is      an error other than ErrBadConn: likewise
 *            after the last try   whatever it says
 *          of Tx and Conn: where the connection is given back or handed to Rows:
 *            (*Rows).initContextClose, or RET   a query succeeded; adapt.go chooses
 *            closemuRUnlock...-fm               a query failed, an exec ended
 *            after grabConn                     there was no connection to use
 *          of DB and Stmt up to Go 1.19: the RETs of the public method
 *
 * The text is read at the end, when the driver has touched it: a program cannot
 * fault a page in. Errors of Rows.Next are not part of the operation.
 */
#include "stash.h"

enum sql_kind {
	RECORD_SQL = RECORD_LIBRARY(2),
};

/* Variants of sql_begin: what the operation is called on, and which one it is. */
enum sql_handle {
	SQL_DB,
	SQL_STMT,
	SQL_TX,
	SQL_CONN,
	SQL_HANDLE = 3,
	SQL_VARIANT_EXEC = 4,
};

/* Variants of sql_end: which site it is, and so where the error is. */
enum sql_end_site {
	SQL_RETRY_RESULT, /* in (*DB).retry after a try: err in words 0 and 1 */
	SQL_RETRY_DECISION, /* after errors.Is(err, driver.ErrBadConn): a bool */
	SQL_RETRY_LAST, /* after the last try: err in words 0 and 1 */
	SQL_ROWS, /* (*Rows).initContextClose: a query succeeded */
	SQL_RELEASE, /* closemuRUnlock...-fm(err): an exec ended, a query failed */
	SQL_NO_CONNECTION, /* grabConn returned (dc, release, err): err in words 2 and 3 */
	SQL_RETURN_QUERY, /* RET up to Go 1.19: (rows, err) */
	SQL_RETURN_EXEC, /* RET up to Go 1.19: (result iface, err) */
	SQL_RETURN_DIRECT, /* RET of (*Tx|Conn).QueryContext: (rows, err) */
	SQL_CRASH, /* runtime.fatalpanic and fatalthrow: the process dies */
};

struct sql_layout {
	u32 db_connector;
	u32 stmt_db;
	u32 stmt_query;
	u32 tx_db;
	u32 conn_db;
	u32 dsn_connector_driver;
	u64 dsn_connector_type; /* database/sql.dsnConnector; 0: none in this binary */
	u64 direct_queries; /* of Tx and Conn: how many began */
};

#define SQL_CODE_MAX 8 /* a SQLSTATE has five */
#define SQL_SMALL_TEXT 512
#define SQL_LARGE_TEXT 4096

struct sql_body {
	struct series_key key; /* error_type; detail: type of the driver, code */
	u64 db; /* address of the *sql.DB */
	u64 connector_type; /* of DB.connector, as linked */
	u32 text_len; /* of the query, before it was cut */
	u32 code_role; /* enum type_role of the code; 0: none */
	u32 is_exec;
	u32 pad;
};

_Static_assert(sizeof(struct sql_body) == STASH_BODY * 8, "a stash holds a body");

struct sql_record {
	struct record_header header;
	struct sql_body body;
};

struct sql_small {
	struct sql_record record;
	char text[SQL_SMALL_TEXT];
};

struct sql_large {
	struct sql_record record;
	char text[SQL_LARGE_TEXT];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct sql_layout);
} sql_layouts SEC(".maps");

/* frame.object of an operation */
#define SQL_OBJECT_DB 0
#define SQL_OBJECT_TEXT 1
#define SQL_OBJECT_TEXT_LEN 2
#define SQL_OBJECT_STATE 3
#define SQL_OBJECT_ERROR_TAB 4 /* of the try before errors.Is looks at it */
#define SQL_OBJECT_ERROR_DATA 5

#define SQL_EXEC (1ULL << 63)
#define SQL_DIRECT (1ULL << 62) /* Tx, Conn: does not go through retry */

static __always_inline struct sql_layout *sql_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&sql_layouts, &p->binary);
}

/* (handle, ctx iface, query string, args); a Stmt has its query in itself. The
 * variant says what the handle is. */
SEC("uprobe")
int sql_begin(struct pt_regs *ctx)
{
	struct runtime_layout *rt;
	struct sql_layout *l;
	struct goroutine *g;
	struct go_string query;
	struct frame *f;
	struct probe p;
	u64 object = GO_REG0(ctx), db = object, state = 0;
	u32 handle;

	if (!probe_begin(ctx, &p))
		return 0;
	handle = p.variant & SQL_HANDLE;
	if (p.variant & SQL_VARIANT_EXEC)
		state |= SQL_EXEC;
	if (handle == SQL_TX || handle == SQL_CONN)
		state |= SQL_DIRECT;
	l = sql_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	if (state == SQL_DIRECT)
		__sync_fetch_and_add(&l->direct_queries, 1);
	query.ptr = GO_REG3(ctx);
	query.len = GO_REG4(ctx);
	if (handle == SQL_STMT) {
		query = go_string(object + l->stmt_query);
		db = go_word(object + l->stmt_db);
	} else if (handle == SQL_TX) {
		db = go_word(object + l->tx_db);
	} else if (handle == SQL_CONN) {
		db = go_word(object + l->conn_db);
	}

	g = span_here(&p, rt, RECORD_SQL, GO_SP(ctx));
	f = span_begin_child(&p, rt, g, RECORD_SQL, GO_REG1(ctx), GO_REG2(ctx));
	if (!f)
		return 0;
	f->sp = GO_SP(ctx);
	f->object[SQL_OBJECT_DB] = db;
	f->object[SQL_OBJECT_TEXT] = query.ptr;
	f->object[SQL_OBJECT_TEXT_LEN] = query.len;
	f->object[SQL_OBJECT_STATE] = state;
	return 0;
}

/* Names what is known at the end of an operation. */
struct sql_ending {
	struct process *process;
	u64 end_ns;
	u64 connector_type;
	u64 driver_type;
	u64 error_type;
	u64 code; /* SQLSTATE, or a number */
	u64 series;
	struct series_key key;
	u32 code_role;
	u32 pad;
};

static __always_inline void sql_error(struct sql_ending *e, const struct probe *p, u64 error_data)
{
	struct type_key key = { .type = e->error_type, .binary = p->binary };
	struct type_info *info;
	struct go_string s;
	u64 addr;

	if (!e->error_type || !error_data)
		return;
	info = bpf_map_lookup_elem(&types, &key);
	if (!info)
		return;
	addr = error_data + info->offset;
	if (info->role == TYPE_ERROR_CODE_STRING) {
		s = go_string(addr);
		if (!s.len || s.len > SQL_CODE_MAX ||
		    bpf_probe_read_user(&e->code, s.len & 0xf, (void *)s.ptr))
			return;
	} else if (info->role == TYPE_ERROR_CODE_U16) {
		if (bpf_probe_read_user(&e->code, 2, (void *)addr))
			return;
	} else if (info->role == TYPE_ERROR_CODE_I32) {
		if (bpf_probe_read_user(&e->code, 4, (void *)addr))
			return;
	} else {
		return;
	}
	e->code_role = info->role;
}

/* Which driver it is: the type of its connector, or, where database/sql wraps a driver
 * that has none, of the driver inside. */
static __always_inline void sql_driver(struct sql_ending *e, const struct probe *p,
				       const struct sql_layout *l, u64 db)
{
	struct go_iface connector = go_iface(db + l->db_connector);

	e->connector_type = probe_type(p, connector.tab);
	if (l->dsn_connector_type && e->connector_type == l->dsn_connector_type)
		e->driver_type = probe_type(p, go_word(connector.data + l->dsn_connector_driver));
}

/* What follows the header in a record, and is all of it that a stash keeps. */
static __always_inline void sql_body(struct sql_body *b, struct frame *f,
				     const struct sql_ending *e)
{
	u64 len = f->object[SQL_OBJECT_TEXT_LEN];

	b->key = e->key;
	b->db = f->object[SQL_OBJECT_DB];
	b->connector_type = e->connector_type;
	b->text_len = len > 0xffffffff ? 0xffffffff : len;
	b->code_role = e->code_role;
	b->is_exec = f->object[SQL_OBJECT_STATE] >> 63;
	b->pad = 0;
}

static __always_inline void sql_record(struct sql_record *r, const struct probe *p,
				       struct goroutine *g, struct frame *f,
				       const struct sql_ending *e)
{
	record_fill(&r->header, p, g, f, e->end_ns, e->series);
	sql_body(&r->body, f, e);
}

static __always_inline void sql_text(struct sql_record *r, struct process *process, char *text,
				     u64 len, u64 ptr)
{
	if (len && bpf_probe_read_user(text, at_most(len, SQL_LARGE_TEXT), (void *)ptr)) {
		count_in(process, COUNT_BAD_READ, 1);
		r->body.text_len = 0;
	}
}

static __always_inline void sql_emit(const struct probe *p, struct goroutine *g, struct frame *f,
				     const struct sql_ending *e)
{
	u64 len = f->object[SQL_OBJECT_TEXT_LEN];
	u64 ptr = f->object[SQL_OBJECT_TEXT];
	struct sql_small *small;
	struct sql_large *large;

	if (len <= SQL_SMALL_TEXT) {
		small = bpf_ringbuf_reserve(&ring, sizeof(*small), 0);
		if (!small)
			goto full;
		sql_record(&small->record, p, g, f, e);
		if (len && bpf_probe_read_user(small->text, at_most(len, SQL_SMALL_TEXT), (void *)ptr)) {
			count_in(e->process, COUNT_BAD_READ, 1);
			small->record.body.text_len = 0;
		}
		record_submit(e->process, small);
		return;
	}
	if (len > SQL_LARGE_TEXT)
		len = SQL_LARGE_TEXT;
	large = bpf_ringbuf_reserve(&ring, sizeof(*large), 0);
	if (!large)
		goto full;
	sql_record(&large->record, p, g, f, e);
	sql_text(&large->record, e->process, large->text, len, ptr);
	record_submit(e->process, large);
	return;
full:
	count_in(e->process, COUNT_LOST_RING_FULL, 1);
}

#define METRIC_SQL 1

/* A query is known by its first SCRATCH_SIZE bytes and its length. */
static __always_inline void sql_measure(const struct probe *p, const struct runtime_layout *rt,
					struct goroutine *g, struct frame *f,
					struct sql_ending *e)
{
	u64 len = f->object[SQL_OBJECT_TEXT_LEN];
	u64 ptr = f->object[SQL_OBJECT_TEXT];
	u64 owner = image_owner(p->tgid, p->binary), constant, unread = 0;
	struct series_key *key = &e->key;

	if (len > SCRATCH_SIZE)
		len = SCRATCH_SIZE;
	key->tgid = p->tgid;
	key->kind = RECORD_SQL;
	constant = image_text(IMAGE_TEXT, rt, p->bias, ptr, len);
	if (constant && len)
		key->text = image_get(constant, owner);
	if (key->text) {
		unread = ptr;
	} else if (len && !bpf_probe_read_user(g->scratch, len, (void *)ptr)) {
		text_pad(g->scratch, len);
		key->text = text_hash(g->scratch, len);
		if (constant)
			image_put(constant, owner, key->text);
	} else if (len) {
		f->object[SQL_OBJECT_TEXT_LEN] = len = 0;
		count_in(e->process, COUNT_BAD_READ, 1);
	}
	key->error_type = e->error_type;
	key->detail[0] = e->driver_type ? e->driver_type : e->connector_type;
	key->detail[1] = e->code;
	e->series = measure_sql(p, e->process, METRIC_SQL, key, g->scratch, len, unread, e->code_role,
			    e->end_ns - f->start_ns, db_bounds, sizeof(db_bounds) / sizeof(u64));
}

/* The trace is not sampled: the end of its local root may still keep it. */
static __always_inline void sql_unsampled(const struct probe *p, const struct runtime_layout *rt,
					  struct goroutine *g, struct frame *f,
					  const struct sql_ending *e)
{
	struct sql_body body;
	u32 keep;

	if (span_is_local_root(g, f)) {
		keep = keep_reason(e->process, g, e->error_type != 0, e->end_ns - f->start_ns);
		stash_settle(p, e->process, g, keep);
		f->flags |= keep;
		if (keep) {
			sql_emit(p, g, f, e);
			return;
		}
	} else {
		sql_body(&body, f, e);
		if (stash_add(p, rt, g, f, e->end_ns, &body))
			return;
	}
	count_unsampled(e->process, g);
}

static __always_inline void sql_finish(const struct probe *p, const struct runtime_layout *rt,
				       const struct sql_layout *l, struct goroutine *g,
				       struct frame *f, u64 error_tab, u64 error_data)
{
	struct sql_ending e = {};

	e.end_ns = bpf_ktime_get_ns();
	e.process = process_of(p);
	if (e.process && (f->flags & SPAN_STOOD_DOWN)) {
		count_in(e.process, COUNT_STOOD_DOWN, 1);
	} else if (e.process) {
		e.error_type = go_type_of(error_tab, p->bias);
		sql_error(&e, p, error_data);
		sql_driver(&e, p, l, f->object[SQL_OBJECT_DB]);
		sql_measure(p, rt, g, f, &e);
		if (g->sampled && e.error_type && span_is_local_root(g, f))
			f->flags |= keep_limited(e.process, e.end_ns);
		if (span_sampled(g, f))
			sql_emit(p, g, f, &e);
		else if (f->flags & SPAN_FOREIGN)
			count_in(e.process, COUNT_SAMPLED_OUT, 1);
		else
			sql_unsampled(p, rt, g, f, &e);
	}
	span_pop(p, g);
}

static __always_inline bool sql_site_is_direct(u32 site)
{
	return site == SQL_ROWS || site == SQL_RELEASE || site == SQL_NO_CONNECTION ||
	       site == SQL_RETURN_DIRECT;
}

/* Ends the innermost span if it is an operation that this site can end. */
SEC("uprobe")
int sql_end(struct pt_regs *ctx)
{
	struct panicked panicked;
	struct runtime_layout *rt;
	struct sql_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4], error_tab, error_data;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	error_tab = words[0];
	error_data = words[1];
	if (p.variant == SQL_RETRY_DECISION && (error_tab & 0xff))
		return 0; /* a bad connection: the next try follows */
	l = sql_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	if (p.variant == SQL_CRASH)
		probe_crashed(&p, rt);
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	if (!f || f->kind != RECORD_SQL ||
	    (p.variant != SQL_CRASH && !(f->object[SQL_OBJECT_STATE] & SQL_DIRECT) == sql_site_is_direct(p.variant)))
		return 0;

	if (p.variant == SQL_RETRY_RESULT && error_tab) {
		/* Whether this was the last try is decided after errors.Is. */
		f->object[SQL_OBJECT_ERROR_TAB] = error_tab;
		f->object[SQL_OBJECT_ERROR_DATA] = error_data;
		return 0;
	}
	if (p.variant == SQL_RETRY_DECISION) {
		error_tab = f->object[SQL_OBJECT_ERROR_TAB];
		error_data = f->object[SQL_OBJECT_ERROR_DATA];
	} else if (p.variant == SQL_ROWS) {
		error_tab = 0;
	} else if (p.variant == SQL_CRASH) {
		error_tab = 0;
		f->flags |= SPAN_CRASHED;
	} else if (p.variant == SQL_NO_CONNECTION || p.variant == SQL_RETURN_EXEC) {
		error_tab = words[2];
		error_data = words[3];
	} else if (p.variant == SQL_RETURN_QUERY || p.variant == SQL_RETURN_DIRECT) {
		error_tab = words[1];
		error_data = words[2];
	}
	panicked = panicked_of(g);
	sql_finish(&p, rt, l, g, f, error_tab, error_data);
	if (p.variant == SQL_CRASH)
		panicked_add(&p, &panicked);
	return 0;
}
