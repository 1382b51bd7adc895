// Command told calls a service in every way that a header can be written to, and is that
// service in another process: it says what traceparent it was told. For the end-to-end tests.
//
//	told receive   prints "got", the number of the call and all its values of traceparent,
//	               and "state" likewise of tracestate, if there is one
//	told send      makes calls when it is asked to
package main

import (
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: told receive|send [flags]")
	}
	switch os.Args[1] {
	case "receive":
		receive()
	case "send":
		send(os.Args[2:])
	default:
		log.Fatal("neither receive nor send")
	}
}

// listen opens a port on all addresses and says where.
func listen(what string) net.Listener {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s listens on %d\n", what, ln.Addr().(*net.TCPAddr).Port)
	return ln
}

// own is the traceparent that a call has set itself.
func own(i int) string { return fmt.Sprintf("00-%032x-%016x-01", i+1, i+1) }
