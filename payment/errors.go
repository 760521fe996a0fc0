package payment

import (
	"errors"

	"github.com/tollgate402/tollgate/internal/strictjson"
)

// A MalformedError says that a message cannot be read at all. Nothing is
// known about money then. Its text is for the sender: it names the member at
// fault and never repeats what was sent.
type MalformedError struct {
	What string // the header or body that cannot be read
	Err  error
}

func (e *MalformedError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *MalformedError) Unwrap() error { return e.Err }

func malformed(what string, err error) error {
	if _, ok := errors.AsType[*MalformedError](err); ok {
		return err
	}
	return &MalformedError{what, err}
}

// Malformed returns a *MalformedError for the member called path of what.
func Malformed(what, path, problem string) error {
	return &MalformedError{what, &strictjson.Error{Path: path, Problem: problem}}
}

// An InvalidError says that a payment is bad: it was read and understood, and
// it must not be accepted.
type InvalidError struct {
	Reason  Reason // the protocol's code
	Message string // details for a person; may be empty
	Payer   string // who seems to have sent it; may be empty
}

func (e *InvalidError) Error() string {
	if e.Message == "" {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Message
}

// NonceUsed reports whether the error says that the payment's nonce has been
// used, by this payment or by something else.
func (e *InvalidError) NonceUsed() bool {
	return e.Reason == EVMNonceUsed || e.Reason == Permit2InvalidNonce
}

// Invalid returns an *InvalidError.
func Invalid(reason Reason, message string) *InvalidError {
	return &InvalidError{Reason: reason, Message: message}
}

// An UnavailableError says that the answer could not be found out. It is
// never a statement about the payment: unknown is not unpaid.
type UnavailableError struct {
	Doing string // what was being done, such as "simulating the transfer"
	Err   error

	// Pending reports that the money may have moved, or may still move: the
	// payer must not be asked to pay again. Without it nothing was sent.
	Pending bool

	// Transaction is the hash under which the payment was broadcast, where
	// it is known.
	Transaction string

	// Payer is the payment's sender where it is known.
	Payer string
}

func (e *UnavailableError) Error() string {
	if e.Err == nil {
		return e.Doing
	}
	return e.Doing + ": " + e.Err.Error()
}
func (e *UnavailableError) Unwrap() error { return e.Err }
