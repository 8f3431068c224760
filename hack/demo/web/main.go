// Command web is the demonstration's application, alone in its image:
//
//	web serve ADDR     answer with the page below /srv, write a line for each request
//	web watch URL      fetch URL twice a second, write a line when what comes changes
//	web hello          say who and where this is
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("want serve, watch or hello"))
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
	switch {
	case os.Args[1] == "serve" && len(os.Args) == 3:
		fail(serve(os.Args[2]))
	case os.Args[1] == "watch" && len(os.Args) == 3:
		watch(os.Args[2])
	case os.Args[1] == "hello":
		host, err := os.Hostname()
		if err != nil {
			fail(err)
		}
		fmt.Printf("hello from %s, process %d of user %d\n", host, os.Getpid(), os.Getuid())
	default:
		fail(fmt.Errorf("unknown arguments %q", os.Args[1:]))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "web:", err)
	os.Exit(1)
}

func serve(address string) error {
	files := http.FileServer(http.Dir("/srv"))
	fmt.Println("serving on", address)
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Method, r.URL.Path, "from", r.RemoteAddr)
		files.ServeHTTP(w, r)
	}))
}

func watch(url string) {
	client := http.Client{Timeout: time.Second}
	last := ""
	for ; ; time.Sleep(500 * time.Millisecond) {
		now := "no answer"
		if r, err := client.Get(url); err == nil {
			b, _ := io.ReadAll(r.Body)
			r.Body.Close()
			now = fmt.Sprintf("%s, %d bytes", r.Status, len(b))
		}
		if now != last {
			fmt.Println(url, now)
			last = now
		}
	}
}
