// Go's net/http. See tests/servers/__init__.py.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	log, err := os.OpenFile(os.Args[2], os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		if request.URL.Path == "/early" {
			response.WriteHeader(401)
			io.WriteString(response, "no")
			return
		}
		fmt.Fprintf(log, "%s %s\n", request.Method, request.URL.Path)
		io.Copy(io.Discard, request.Body)
		io.WriteString(response, "EXECUTED")
	}
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(answer)))
}
