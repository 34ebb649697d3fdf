"""Signs in with Debian's python3-ntlm-auth. Lines on stdin and stdout are hexadecimal.

argv: user password domain workstation binding (hex, may be empty)
out: negotiate; in: challenge; out: authenticate
then, until stdin ends: in: "seal <plain>" -> out: signature + sealed; in: "unseal <signature + sealed>" -> out: plain
"""
import hashlib
import sys

from Cryptodome.Hash import MD4
from ntlm_auth.gss_channel_bindings import GssChannelBindingsStruct
from ntlm_auth.ntlm import NtlmContext

# OpenSSL 3 hides MD4, which NTLM is built on.
new = hashlib.new
hashlib.new = lambda name, data=b"": MD4.new(data) if name == "md4" else new(name, data)

user, password, domain, workstation, binding = sys.argv[1:6]
cbt = None
if binding:
    cbt = GssChannelBindingsStruct()
    cbt[cbt.APPLICATION_DATA] = bytes.fromhex(binding)


def say(b):
    print(b.hex(), flush=True)


ctx = NtlmContext(user, password, domain, workstation, cbt_data=cbt, ntlm_compatibility=3)
say(ctx.step())
say(ctx.step(bytes.fromhex(sys.stdin.readline())))
for line in sys.stdin:
    verb, data = line.split(" ")
    data = bytes.fromhex(data)
    say(ctx.wrap(data) if verb == "seal" else ctx.unwrap(data))
