//go:build race

package main

// raced tells that the tests look for data races; the program is then built so, too.
const raced = true
