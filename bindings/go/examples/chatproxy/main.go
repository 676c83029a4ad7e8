// A proxy that guards a chat model: what the model writes is held back until it is cleared, and ends
// where it turns harmful. With -flag it is passed on and marked instead.
//
//	go run ./examples/chatproxy -upstream http://127.0.0.1:8000 -listen 127.0.0.1:8080
//
// SIGHUP opens the guard anew, under load.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"libsiren/siren"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "the address to serve")
	upstream := flag.String("upstream", "http://127.0.0.1:8000", "the model's server")
	model := flag.String("model", "", "the guard: a directory or a hub repository; the demo guard if empty")
	mark := flag.Bool("flag", false, "pass everything on, and mark where it crossed")
	failure := flag.String("on-failure", "block", "block, flag or pass what could not be judged")
	timeout := flag.Duration("timeout", 5*time.Second, "for one push")
	flag.Parse()
	if err := run(*listen, *upstream, *model, *mark, *failure, *timeout); err != nil {
		log.Fatal(err)
	}
}

func run(listen, upstream, model string, mark bool, failure string, timeout time.Duration) error {
	policy, known := map[string]Policy{"block": Block, "flag": FlagUnjudged, "pass": PassUnjudged}[failure]
	if !known {
		return fmt.Errorf("-on-failure is %q, expected block, flag or pass", failure)
	}
	address, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	guard, err := siren.Open(context.Background(), model)
	if err != nil {
		return err
	}
	current := NewCurrent(guard)
	go func() {
		reload := make(chan os.Signal, 1)
		signal.Notify(reload, syscall.SIGHUP)
		for range reload {
			guard, err := siren.Open(context.Background(), model)
			if err == nil {
				err = current.Replace(guard)
			}
			log.Printf("the guard was opened anew: %v", err)
		}
	}()
	middleware := &Middleware{Open: current.Open, Flag: mark, OnFailure: policy, Timeout: timeout}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(address) }}
	server := &http.Server{Addr: listen, Handler: middleware.Wrap(proxy), ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}
