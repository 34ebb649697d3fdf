"""Lists the VMs of a host with pywinrm (Debian: python3-winrm).

vms.py URL USER PASSWORDFILE [CERTIFICATE]
"""
import os
import sys
import xml.etree.ElementTree as ET

here = os.path.dirname(os.path.abspath(__file__))
os.environ.setdefault("OPENSSL_CONF", os.path.join(here, "openssl.cnf"))  # for MD4, before anything reads it
import winrm  # noqa: E402

PULL = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
VM = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ComputerSystem"

url, user, password = sys.argv[1:4]
ca = {"ca_trust_path": sys.argv[4]} if len(sys.argv) > 4 else {}
# By plain HTTP the messages are sealed, as Windows wants it.
protocol = winrm.Protocol(url, "ntlm", user, open(password).readline().strip(), **ca)
request = open(os.path.join(here, "vms.xml")).read()
head, body = request[: request.index("<n:Enumerate>")], request[request.index("</n:Enumerate>") + len("</n:Enumerate>") :]
while True:
    answer = ET.fromstring(protocol.transport.send_message(request))
    for vm in answer.iter("{%s}Msvm_ComputerSystem" % VM):
        value = {p.tag.split("}")[1]: p.text for p in vm}
        print(value["Name"], value["ElementName"], {"2": "runs", "3": "off"}.get(value["EnabledState"], value["EnabledState"]))
    if any(e.tag.endswith("}EndOfSequence") for e in answer.iter()):
        break
    context = next(e.text for e in answer.iter("{%s}EnumerationContext" % PULL))
    pull = "<n:Pull><n:EnumerationContext>%s</n:EnumerationContext><n:MaxElements>20</n:MaxElements></n:Pull>" % context
    request = head.replace("enumeration/Enumerate", "enumeration/Pull") + pull + body
