// Makes three calls with net/http on one connection and prints what came of them, and whom it believes to talk to.
package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
)

func main() {
	base, peer := "http://"+os.Args[1], ""
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { peer = info.Conn.RemoteAddr().(*net.TCPAddr).String() }}
	call := func(method, path, body string) (int, string) {
		request, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		reply, err := http.DefaultClient.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
		if err != nil {
			panic(err)
		}
		defer reply.Body.Close()
		data, _ := io.ReadAll(reply.Body)
		return reply.StatusCode, string(data)
	}
	allowed, _ := call("GET", "/ok", "")
	denied, _ := call("GET", "/denied", "")
	posted, echo := call("POST", "/submit", "a body")
	json.NewEncoder(os.Stdout).Encode(map[string]any{"allowed": allowed, "denied": denied, "posted": posted, "echo": echo, "peer": peer})
}
