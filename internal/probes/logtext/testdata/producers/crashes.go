package main

import (
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

type codeError struct{ code int }

func (e *codeError) Error() string { return fmt.Sprint("code ", e.code) }

type number int

type shape struct{ a, b int }

func init() {
	cases["panic-text"] = func() { panic("boom") }
	cases["panic-lines"] = func() { panic("boom\nsecond line\n\nfourth line") }
	cases["panic-error"] = func() { panic(fmt.Errorf("load: %w", &codeError{5})) }
	cases["panic-number"] = func() { panic(number(7)) }
	cases["panic-struct"] = func() { panic(shape{1, 2}) }
	cases["panic-nil-pointer"] = func() { var p *shape; p.a = 1 }
	cases["panic-index"] = func() { s := make([]int, 3); i := 5; fmt.Println(s[i]) }
	cases["panic-again"] = func() {
		defer func() {
			panic(fmt.Sprint("while handling: ", recover()))
		}()
		panic("first")
	}
	cases["panic-goexit"] = func() {
		go func() { panic(errors.New("in a goroutine")) }()
		time.Sleep(time.Second)
	}
	cases["fatal-map"] = func() {
		m := map[int]int{}
		for range 8 {
			go func() {
				for {
					m[1]++
				}
			}()
		}
		select {}
	}
	cases["fatal-deadlock"] = func() { var mu sync.Mutex; mu.Lock(); mu.Lock() }
	cases["fatal-stack"] = func() {
		debug.SetMaxStack(1 << 16)
		var f func(int) int
		f = func(n int) int { return f(n+1) + 1 }
		f(0)
	}
	cases["signal-quit"] = func() {
		syscall.Kill(os.Getpid(), syscall.SIGQUIT)
		time.Sleep(time.Second)
	}
	cases["panic-all"] = func() {
		debug.SetTraceback("all")
		for range 3 {
			go func() { select {} }()
		}
		time.Sleep(20 * time.Millisecond)
		log.Print("about to die")
		panic("with all goroutines")
	}
	cases["served-panic"] = func() {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/nil" {
				var p *shape
				p.a = 1
			}
			panic("handler gave up")
		}))
		http.Get(s.URL)
		http.Get(s.URL + "/nil")
		s.Close()
	}
	cases["plain"] = plain
}

func plain() {
	fmt.Fprintln(os.Stderr, "panic: not one")
	fmt.Fprintln(os.Stderr, "next line")
	fmt.Fprint(os.Stderr, "usage: shop [flags]\n  -a int\n    \tthe a\n  -b\tthe b\n")
	fmt.Fprint(os.Stderr, "no ")
	fmt.Fprint(os.Stderr, "newline ")
	fmt.Fprintln(os.Stderr, "until here")
	println("by the runtime", 5, true)
	debug.PrintStack()
	fmt.Fprint(os.Stderr, "bytes \xff\xfe and \x00 end\r\n")
	fmt.Fprint(os.Stderr, "the end")
}
