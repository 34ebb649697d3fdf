// Package holdfast is the root of the module; it holds no code but the test
// that keeps the imports between packages going down (arch_test.go). Start
// with README.md and ARCHITECTURE.md.
package holdfast
