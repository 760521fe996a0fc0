//go:build !cgo && !recoverchild

package main

const cgo = false
