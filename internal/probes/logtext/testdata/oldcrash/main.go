// Command oldcrash dies in the way that its argument names. It builds with
// every Go from 1.18 on; see producers.
package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

type number int

func main() {
	switch os.Args[1] {
	case "panic-lines":
		panic("boom\nsecond line\n\nfourth line")
	case "panic-error":
		panic(fmt.Errorf("load: %w", errors.New("code 5")))
	case "panic-again":
		defer func() { panic(fmt.Sprint("while handling: ", recover())) }()
		panic(number(7))
	case "panic-nil-pointer":
		var p *struct{ a int }
		p.a = 1
	case "fatal-deadlock":
		var mu sync.Mutex
		mu.Lock()
		mu.Lock()
	}
}
