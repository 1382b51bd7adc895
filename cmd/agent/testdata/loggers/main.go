// Command loggers serves requests that log in every way that a Go program can: by the
// loggers that people use, and by what lies below them.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// loggers write one line each, of every level: the level's name, the message "hello
// there", a number n and a text s.
var loggers = map[string]func(level string){}

func main() {
	addLoggers()
	mux := http.NewServeMux()
	mux.HandleFunc("/log/", func(_ http.ResponseWriter, r *http.Request) {
		name, level, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/log/"), "/")
		loggers[name](level)
	})
	mux.HandleFunc("/line", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(os.Stderr, "level=info msg=%q id=%s\n", "a line of the flood", r.URL.Query().Get("id"))
	})
	mux.HandleFunc("/below/", below)
	mux.HandleFunc("/crash/", crash)
	mux.HandleFunc("/panic", func(http.ResponseWriter, *http.Request) { panic("the kitchen burns") })
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) {})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("loggers listens on http://" + listener.Addr().String())
	log.Fatal(http.Serve(listener, mux))
}

func addLoggers() {
	loggers["log"] = func(string) { log.Print("hello there") }

	encoder := zap.NewProductionEncoderConfig()
	core := func(e zapcore.Encoder) func(string) {
		l := zap.New(zapcore.NewCore(e, zapcore.Lock(os.Stderr), zapcore.DebugLevel), zap.AddCaller())
		return func(level string) {
			at, err := zapcore.ParseLevel(level)
			if err != nil {
				panic(err)
			}
			l.Check(at, "hello there").Write(zap.Int("n", 7), zap.String("s", "two words"))
		}
	}
	loggers["zap"] = core(zapcore.NewJSONEncoder(encoder))
	loggers["zap-console"] = core(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()))

	zero := zerolog.New(os.Stderr).With().Timestamp().Logger()
	loggers["zerolog"] = func(level string) {
		at, err := zerolog.ParseLevel(level)
		if err != nil {
			panic(err)
		}
		zero.WithLevel(at).Int("n", 7).Str("s", "two words").Msg("hello there")
	}

	rus := func(f logrus.Formatter) func(string) {
		l := logrus.New() // to os.Stderr
		l.SetLevel(logrus.DebugLevel)
		l.SetFormatter(f)
		return func(level string) {
			at, err := logrus.ParseLevel(level)
			if err != nil {
				panic(err)
			}
			l.WithFields(logrus.Fields{"n": 7, "s": "two words"}).Log(at, "hello there")
		}
	}
	loggers["logrus"] = rus(&logrus.TextFormatter{})
	loggers["logrus-json"] = rus(&logrus.JSONFormatter{})

	loggers["klog"] = func(level string) {
		switch level {
		case "info":
			klog.InfoS("hello there", "n", 7, "s", "two words")
		case "warn":
			klog.Warning("hello there")
		default:
			klog.ErrorS(nil, "hello there", "n", 7, "s", "two words")
		}
	}
	addSlog()
}

// big is as long as a line can be that is kept whole.
var big = strings.Repeat("0123456789abcdef", 4096)[:64<<10]

// below writes in ways that no logger would.
func below(_ http.ResponseWriter, r *http.Request) {
	switch strings.TrimPrefix(r.URL.Path, "/below/") {
	case "big":
		os.Stderr.WriteString(big + "\n")
	case "bytes":
		line := []byte("a line in writes of one byte, " + strings.Repeat("x", 500) + "\n")
		for i := range line {
			os.Stderr.Write(line[i : i+1])
		}
	case "interleaved":
		// Two goroutines, a word each in turn; both lines are to be whole.
		var wg sync.WaitGroup
		turn := [2]chan bool{make(chan bool, 1), make(chan bool, 1)}
		turn[0] <- true
		for me := 0; me < 2; me++ {
			wg.Add(1)
			go func(me int) {
				defer wg.Done()
				for i := 0; i < 5; i++ {
					<-turn[me]
					end := " "
					if i == 4 {
						end = "\n"
					}
					os.Stderr.WriteString("writer" + strconv.Itoa(me) + "-" + strconv.Itoa(i) + end)
					turn[1-me] <- true
				}
			}(me)
		}
		wg.Wait()
	case "utf8":
		os.Stderr.Write([]byte("not \xff\xfe UTF-8\n"))
	case "nul":
		os.Stderr.Write([]byte("a NUL \x00 here\n"))
	case "noend":
		os.Stderr.WriteString("no newline at the end")
	case "literal":
		os.Stderr.WriteString("a literal that nothing has read before\n")
	case "println":
		println("printed", 7, true)
	case "syscall":
		syscall.Write(2, []byte("a system call\n"))
	case "many":
		// A buffered logger: many lines in one write.
		var b strings.Builder
		for i := 0; i < 1000; i++ {
			fmt.Fprintf(&b, "level=info msg=\"buffered line\" i=%d\n", i)
		}
		os.Stderr.WriteString(b.String())
	case "dup":
		// Standard error is what descriptor 2 is, wherever that leads.
		f, err := os.Create(r.URL.Query().Get("to"))
		if err != nil {
			panic(err)
		}
		old, err := syscall.Dup(2)
		if err != nil {
			panic(err)
		}
		syscall.Dup3(int(f.Fd()), 2, 0)
		os.Stderr.WriteString("a line into a file\n")
		syscall.Dup3(old, 2, 0)
		f.WriteString("not standard error\n")
		f.Close()
	}
}

//go:noinline
func overflow(n int) int { return overflow(n+1) + 1 }

var crashes = map[string]func(){
	// The one that reads notices.
	"map": func() {
		m := map[int]int{}
		go func() {
			for {
				m[1]++
			}
		}()
		for {
			_ = m[2]
		}
	},
	"stack": func() {
		debug.SetMaxStack(1 << 20)
		overflow(0)
	},
	// Not the server's goroutine, whose panics net/http recovers.
	"panic": func() {
		done := make(chan bool)
		go func() { panic(fmt.Errorf("out of %s", "flour")) }()
		<-done
	},
	"exit": func() { log.Fatal("giving up") },
	"kill": func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) },
}

// crash ends the process.
func crash(_ http.ResponseWriter, r *http.Request) {
	crashes[strings.TrimPrefix(r.URL.Path, "/crash/")]()
}
