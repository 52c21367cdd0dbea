// goproxy as its README has it: a plain forward proxy at the address of its one argument.
package main

import (
	"log"
	"net/http"
	"os"

	"github.com/elazarl/goproxy"
)

func main() {
	log.Fatal(http.ListenAndServe(os.Args[1], goproxy.NewProxyHttpServer()))
}
