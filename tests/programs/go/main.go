// Go's net/http as server, as reverse proxy and as client, and a proxy that copies connections. See tests/programs/calls.py.
//
//	go-programs server|proxy|copy LISTEN ORIGIN CONTENT
//	go-programs client BASE CONTENT    plays what it is told on standard input, see tests/programs/clients.py
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	if os.Args[1] == "client" {
		client(os.Args[2], os.Args[3])
		return
	}
	mode, listen, origin, content := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	switch mode {
	case "server":
		panic(http.ListenAndServe(listen, server(content)))
	case "proxy":
		panic(http.ListenAndServe(listen, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: origin})))
	case "copy":
		copying(listen, origin)
	}
}

func server(content string) http.Handler {
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		file := filepath.Join(content, path.Base(request.URL.Path))
		switch strings.Split(request.URL.Path, "/")[1] {
		case "early":
			http.Error(response, "no", http.StatusRequestEntityTooLarge)
		case "down":
			http.ServeFile(response, request, file)
		case "chunked":
			opened, err := os.Open(file)
			if err != nil {
				panic(err)
			}
			defer opened.Close()
			response.(http.Flusher).Flush() // without a length
			io.Copy(response, opened)
		case "slow":
			time.Sleep(300 * time.Millisecond)
			hash := sha256.New()
			length, _ := io.CopyN(hash, request.Body, 1_000_000)
			time.Sleep(300 * time.Millisecond)
			rest, _ := io.Copy(hash, request.Body)
			fmt.Fprintf(response, "%d %x\n", length+rest, hash.Sum(nil))
		default:
			hash := sha256.New()
			length, err := io.Copy(hash, request.Body)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(response, "%d %x\n", length, hash.Sum(nil))
		}
	})
}

// copying joins each connection with one to the origin: io.Copy between two TCP connections is splice(2).
func copying(listen, origin string) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		panic(err)
	}
	for {
		accepted, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			dialled, err := net.Dial("tcp", origin)
			if err != nil {
				accepted.Close()
				return
			}
			go copyOne(dialled.(*net.TCPConn), accepted.(*net.TCPConn))
			copyOne(accepted.(*net.TCPConn), dialled.(*net.TCPConn))
		}()
	}
}

func copyOne(to, from *net.TCPConn) {
	io.Copy(to, from)
	to.CloseWrite()
}

func client(base, content string) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if words[0] == "new" {
			transport.CloseIdleConnections()
			continue
		}
		var body io.Reader
		length := int64(0)
		if len(words) > 2 {
			file, err := os.Open(filepath.Join(content, words[2]))
			if err != nil {
				panic(err)
			}
			body = file
			length, _ = strconv.ParseInt(words[2], 10, 64)
			if words[3] == "chunked" {
				length = -1
			} else if length == 0 {
				body = http.NoBody
			}
		}
		request, err := http.NewRequest(words[0], base+words[1], body)
		if err != nil {
			panic(err)
		}
		request.ContentLength = length
		reply, err := transport.RoundTrip(request)
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), " ", "_"))
			continue
		}
		hash := sha256.New()
		got, err := io.Copy(hash, reply.Body)
		reply.Body.Close()
		if err != nil {
			fmt.Println("error", strings.ReplaceAll(err.Error(), " ", "_"))
			continue
		}
		fmt.Printf("%d %d %x\n", reply.StatusCode, got, hash.Sum(nil))
	}
}
