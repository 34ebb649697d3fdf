// Package nbd is Holdfast's own client and server of the Network Block Device
// protocol: fixed newstyle negotiation, structured replies and metadata
// contexts.
//
// It owns the wire format and the life of connections, nothing else: what is
// behind an export is a [Device] of the caller, and what is done with the bytes
// read is the caller's business too. Source of the format: the public NBD
// protocol document (doc/proto.md of the NetworkBlockDevice project).
//
// Promises of the client:
//
//   - A read either fills the whole buffer with bytes that the server sent for
//     exactly that range, or it is an error. Bytes that no reply covered, or
//     that two chunks claimed, are an error.
//   - A metadata context that was wanted and not granted is an error of [Dial];
//     "the server knows no dirty bitmap" can never be read as "nothing is dirty".
//   - [Client.Extents] reports each wanted context without gaps and overlaps
//     over the whole range, or fails.
//   - Whatever bytes a server sends, the client does not panic, and it does not
//     hold memory that no received byte or own request accounts for.
//   - When the connection is lost every pending request fails, with the cause.
//
// Promises of the server:
//
//   - Whatever bytes a client sends, only that client's connection suffers.
//   - A failing request of a device is the error of that request, not of the
//     connection. A request which was under way when the server was told to
//     stop is never answered: the client sees a lost connection, which a
//     hypervisor can wait out and retry, and never an I/O error, which a guest
//     sees.
//   - Memory and parallel requests per connection are bounded.
//   - Devices without [WritableDevice] cannot be changed through it.
//
// Offsets and lengths are bytes in int64. TLS is not part of it: the sockets
// are unix sockets, or TCP inside a tunnel of the caller.
package nbd
