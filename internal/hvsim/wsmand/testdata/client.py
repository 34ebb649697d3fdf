"""Drives the server with pywinrm, a WinRM client that Holdfast's authors did not write.

Usage: client.py URL TRANSPORT ENCRYPTION CAFILE USER PASSWORD VM JOB
Prints one JSON object; the Go test judges it.
"""
import json
import sys
import uuid
import warnings
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

warnings.filterwarnings("ignore")
from winrm.exceptions import WinRMError, WinRMTransportError  # noqa: E402
from winrm.protocol import Protocol  # noqa: E402

url, transport, encryption, ca, user, password, vm, job = sys.argv[1:9]
kwargs = dict(endpoint=url, transport=transport, username=user, password=password, message_encryption=encryption)
if ca:
    kwargs.update(ca_trust_path=ca, server_cert_validation="validate")
protocol = Protocol(**kwargs)

NS = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "n": "http://schemas.xmlsoap.org/ws/2004/09/enumeration",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "f": "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault",
    "b": "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd",
}
V2 = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/"
ANON = NS["a"] + "/role/anonymous"
WQL = "http://schemas.microsoft.com/wbem/wsman/1/WQL"
XSI = "{http://www.w3.org/2001/XMLSchema-instance}"


def envelope(action, resource, body, selectors=None):
    sel = "".join('<w:Selector Name="%s">%s</w:Selector>' % (k, escape(v)) for k, v in (selectors or {}).items())
    if sel:
        sel = "<w:SelectorSet>" + sel + "</w:SelectorSet>"
    xmlns = " ".join('xmlns:%s="%s"' % kv for kv in NS.items())
    return (
        '<s:Envelope %s><s:Header><a:To>%s</a:To><w:ResourceURI s:mustUnderstand="true">%s</w:ResourceURI>'
        '<a:ReplyTo><a:Address s:mustUnderstand="true">%s</a:Address></a:ReplyTo><a:Action s:mustUnderstand="true">%s</a:Action>'
        '<w:MaxEnvelopeSize s:mustUnderstand="true">153600</w:MaxEnvelopeSize><a:MessageID>uuid:%s</a:MessageID>'
        '<w:Locale xml:lang="en-US" s:mustUnderstand="false"/><w:OperationTimeout>PT60.000S</w:OperationTimeout>%s</s:Header><s:Body>%s</s:Body></s:Envelope>'
    ) % (xmlns, url, resource, ANON, action, uuid.uuid4(), sel, body)


def send(*args):
    return ET.fromstring(protocol.transport.send_message(envelope(*args)))


def enumerate_all(query, mode="", elements=1):
    body = '<n:Enumerate>%s<w:Filter Dialect="%s">%s</w:Filter></n:Enumerate>' % (mode, WQL, escape(query))
    root = send(NS["n"] + "/Enumerate", V2 + "*", body)
    items, pulls = [], 0
    while True:
        for holder in root.findall(".//n:Items", NS) + root.findall(".//w:Items", NS):
            items += list(holder)
        if root.find(".//n:EndOfSequence", NS) is not None or root.find(".//w:EndOfSequence", NS) is not None:
            return items, pulls
        ctx = root.find(".//n:EnumerationContext", NS).text
        body = "<n:Pull><n:EnumerationContext>%s</n:EnumerationContext><n:MaxElements>%d</n:MaxElements></n:Pull>" % (ctx, elements)
        root, pulls = send(NS["n"] + "/Pull", V2 + "*", body), pulls + 1


def local(e):
    return e.tag.split("}")[-1]


def fields(e):
    out = {}
    for p in e:
        v = None if p.get(XSI + "nil") == "true" else p.text if len(p) == 0 else [c.text for c in p]
        out.setdefault(local(p), []).append(v)
    return out


def fault(*args):
    try:
        send(*args)
    except WinRMTransportError as e:
        root = ET.fromstring(e.response_text)
        return [e.code, root.find(".//s:Subcode/s:Value", NS).text, root.find(".//f:WSManFault", NS).get("Code")]
    return None


result = {}
items, pulls = enumerate_all("SELECT * FROM Msvm_ComputerSystem")
result["classes"], result["pulls"] = [local(i) for i in items], pulls
result["vm"] = fields(items[1])
items, _ = enumerate_all("SELECT * FROM Many", elements=1000)
result["many"] = len(items)
items, _ = enumerate_all("SELECT * FROM Msvm_ComputerSystem", "<w:EnumerationMode>EnumerateEPR</w:EnumerationMode>", 10)
result["eprs"] = [[s.text for s in i.findall(".//w:Selector", NS)] for i in items]
path = "Msvm_ComputerSystem.CreationClassName=\"Msvm_ComputerSystem\",Name=\"%s\"" % vm
items, _ = enumerate_all("ASSOCIATORS OF {%s} WHERE AssocClass=Msvm_SettingsDefineState ResultClass=Msvm_VirtualSystemSettingData" % path)
result["settings"] = [fields(i)["InstanceID"][0] for i in items]

service = V2 + "Msvm_VirtualSystemSnapshotService"
body = (
    '<p:CreateSnapshot_INPUT xmlns:p="%s"><p:AffectedSystem><a:Address>%s</a:Address><a:ReferenceParameters><w:ResourceURI>%sMsvm_ComputerSystem</w:ResourceURI>'
    '<w:SelectorSet><w:Selector Name="CreationClassName">Msvm_ComputerSystem</w:Selector><w:Selector Name="Name">%s</w:Selector></w:SelectorSet></a:ReferenceParameters>'
    "</p:AffectedSystem><p:SnapshotSettings><![CDATA[<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSnapshotSettingData\"><PROPERTY NAME=\"ConsistencyLevel\" TYPE=\"uint8\">"
    "<VALUE>2</VALUE></PROPERTY></INSTANCE>]]></p:SnapshotSettings><p:SnapshotType>32768</p:SnapshotType></p:CreateSnapshot_INPUT>"
) % (service, ANON, V2, vm)
root = send(service + "/CreateSnapshot", service, body, {"CreationClassName": "Msvm_VirtualSystemSnapshotService"})
out = root.find(".//s:Body", NS)[0]
result["output"] = [local(out), fields(out)["ReturnValue"][0]]
ref = out.find("{%s}Job" % service)
keys = {s.get("Name"): s.text for s in ref.findall("a:ReferenceParameters/w:SelectorSet/w:Selector", NS)}
root = send("http://schemas.xmlsoap.org/ws/2004/09/transfer/Get", ref.find(".//w:ResourceURI", NS).text, "", keys)
result["job"] = fields(root.find(".//s:Body", NS)[0])

GET = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get"
result["faults"] = [
    fault(GET, V2 + "Msvm_ConcreteJob", "", {"InstanceID": "none"}),
    fault(NS["n"] + "/Enumerate", V2 + "*", '<n:Enumerate><w:Filter Dialect="%s">SELECT * FROM Nothing</w:Filter></n:Enumerate>' % WQL),
    fault(service + "/CreateSnapshot", service, '<p:CreateSnapshot_INPUT xmlns:p="%s"><p:SnapshotType>x</p:SnapshotType></p:CreateSnapshot_INPUT>' % service,
          {"CreationClassName": "Msvm_VirtualSystemSnapshotService"}),
]
try:  # pywinrm's own operation, and its own reading of the fault
    protocol.open_shell()
except WinRMError as e:
    result["shell"] = str(e)
print(json.dumps(result))
