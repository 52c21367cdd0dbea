// Fetches a page through a proxy by two libraries: goclients http|socks PROXY PAGE
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/net/proxy"
)

func main() {
	at, err := url.Parse(os.Args[2])
	check(err)
	transport := &http.Transport{Proxy: http.ProxyURL(at)}
	if os.Args[1] == "socks" {
		dialer, err := proxy.FromURL(at, proxy.Direct)
		check(err)
		transport = &http.Transport{DialContext: dialer.(proxy.ContextDialer).DialContext}
	}
	answer, err := (&http.Client{Transport: transport}).Get(os.Args[3])
	check(err)
	body, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Print(string(body))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
