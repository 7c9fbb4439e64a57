// A program that sends back what it gets at sockets that its runtime waits for, by an instance of epoll that is
// edge-triggered, and tells of every error at a line of its standard input.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const (
	short = 20 * time.Millisecond
	long  = time.Minute
)

var (
	lock  sync.Mutex
	wrong = []string{}
)

func complain(words ...any) {
	lock.Lock()
	defer lock.Unlock()
	if len(wrong) < 10 {
		wrong = append(wrong, fmt.Sprintln(words...))
	}
}

type told struct {
	Descriptor uintptr  `json:"fd"`
	Places     []string `json:"places"`
}

// As many goroutines that read it, each with this deadline at each call, if any.
func serve(network, host string, readers int, deadline time.Duration) (told, error) {
	address, err := net.ResolveUDPAddr(network, host+":0")
	if err != nil {
		return told{}, err
	}
	socket, err := net.ListenUDP(network, address)
	if err != nil {
		return told{}, err
	}
	for i := 0; i < readers; i++ {
		go read(socket, deadline)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return told{}, err
	}
	port := socket.LocalAddr().(*net.UDPAddr).Port
	facts := told{Places: []string{fmt.Sprintf("127.0.0.1:%d", port)}}
	if host == "[::]" {
		facts.Places = append(facts.Places, fmt.Sprintf("[::1]:%d", port))
	}
	return facts, raw.Control(func(fd uintptr) { facts.Descriptor = fd })
}

func read(socket *net.UDPConn, deadline time.Duration) {
	datagram := make([]byte, 2000)
	for {
		start := time.Now()
		if deadline > 0 {
			if err := socket.SetReadDeadline(start.Add(deadline)); err != nil {
				complain("SetReadDeadline:", err)
			}
		}
		length, sender, err := socket.ReadFromUDPAddrPort(datagram)
		if deadline == short && errors.Is(err, os.ErrDeadlineExceeded) {
			if took := time.Since(start); took < short {
				complain("gave up early, after", took)
			}
			continue
		}
		if err != nil {
			complain("ReadFromUDPAddrPort:", err)
			continue
		}
		if sent, err := socket.WriteToUDPAddrPort(datagram[:length], sender); err != nil || sent != length {
			complain("WriteToUDPAddrPort:", sent, err)
		}
	}
}

// Long enough for the runtime to interrupt it by a signal, so that others run.
func compute() {
	var expected uint64
	for {
		sum := uint64(1)
		for i := uint64(0); i < 20_000_000; i++ {
			sum = sum*31 + i
		}
		if expected != 0 && sum != expected {
			complain("wrong sum:", sum)
		}
		expected = sum
		time.Sleep(short)
	}
}

func main() {
	sockets := []told{}
	for _, one := range []struct {
		network, host string
		readers       int
		deadline      time.Duration
	}{
		{"udp4", "127.0.0.1", 4, 0},
		{"udp4", "127.0.0.1", 1, short},
		{"udp4", "127.0.0.1", 2, long},
		{"udp", "[::]", 3, 0},
	} {
		facts, err := serve(one.network, one.host, one.readers, one.deadline)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sockets = append(sockets, facts)
	}
	go compute()
	output := json.NewEncoder(os.Stdout)
	output.Encode(map[string]any{"sockets": sockets})
	for input := bufio.NewScanner(os.Stdin); input.Scan(); {
		lock.Lock()
		output.Encode(map[string]any{"wrong": wrong})
		lock.Unlock()
	}
}
