"""The server's side with Debian's python3-impacket and the standard library's HMAC. Lines are hexadecimal.

argv: user password domain
in: negotiate; out: challenge; in: authenticate
out: "ok" or what is wrong; then: in: "seal <plain>" -> out: signature + sealed; in: "unseal <signature + sealed>" -> out: plain
"""
import hmac
import os
import struct
import sys

from Cryptodome.Cipher import ARC4
from impacket import ntlm

user, password, domain = sys.argv[1:4]


def say(b):
    print(b if isinstance(b, str) else b.hex(), flush=True)


negotiate = bytes.fromhex(sys.stdin.readline())
asked = struct.unpack("<L", negotiate[12:16])[0]
flags = asked | ntlm.NTLMSSP_NEGOTIATE_TARGET_INFO | ntlm.NTLMSSP_TARGET_TYPE_SERVER
info = ntlm.AV_PAIRS()
info[ntlm.NTLMSSP_AV_HOSTNAME] = "HV01".encode("utf-16le")
info[ntlm.NTLMSSP_AV_DOMAINNAME] = "CONTOSO".encode("utf-16le")
if "timestamp" in sys.argv[4:]:
    info[ntlm.NTLMSSP_AV_TIME] = struct.pack("<Q", 133000000000000000)
c = ntlm.NTLMAuthChallenge()
c["flags"] = flags
c["domain_name"] = "CONTOSO".encode("utf-16le")
c["challenge"] = nonce = os.urandom(8)
c["TargetInfoFields"] = info
c["Version"] = b"\x0a\x00\x00\x00\x00\x00\x00\x0f"
c["VersionLen"] = 8
c["domain_offset"] = 56
c["TargetInfoFields_offset"] = 56 + len(c["domain_name"])
challenge = c.getData()
say(challenge)

raw = bytes.fromhex(sys.stdin.readline())
a = ntlm.NTLMAuthChallengeResponse()
a.fromString(raw)
name, dom = a["user_name"].decode("utf-16le"), a["domain_name"].decode("utf-16le")
if name != user or dom != domain:
    sys.exit("user %r of %r" % (name, dom))
key = ntlm.NTOWFv2(name, password, dom)
proof, blob = a["ntlm"][:16], a["ntlm"][16:]
if hmac.new(key, nonce + blob, "md5").digest() != proof:
    sys.exit("the proof is wrong")
base = hmac.new(key, proof, "md5").digest()
exported = ARC4.new(base).encrypt(a["session_key"])
if hmac.new(exported, negotiate + challenge + raw[:72] + bytes(16) + raw[88:], "md5").digest() != raw[72:88]:
    sys.exit("the integrity code is wrong")
say("ok")

flags = a["flags"]
sign = {m: ntlm.SIGNKEY(flags, exported, m) for m in ("Client", "Server")}
seal = {m: ARC4.new(ntlm.SEALKEY(flags, exported, m)).encrypt for m in ("Client", "Server")}
seq = {"Client": 0, "Server": 0}
for line in sys.stdin:
    verb, data = line.split(" ")
    data = bytes.fromhex(data)
    if verb == "seal":
        out, sig = ntlm.SEAL(flags, sign["Server"], seal["Server"], data, data, seq["Server"], seal["Server"])
        seq["Server"] += 1
        say(sig.getData() + out)
    else:
        plain = seal["Client"](data[16:])
        if ntlm.MAC(flags, seal["Client"], sign["Client"], seq["Client"], plain).getData() != data[:16]:
            sys.exit("the signature is wrong")
        seq["Client"] += 1
        say(plain)
