package com

// Places of methods in the tables of their interfaces (wbemcli.h, oaidl.h), compared with a compiler's in a test.
const (
	unknownQuery   = 0
	unknownAddRef  = 1
	unknownRelease = 2

	locatorConnect = 3 // IWbemLocator::ConnectServer

	servicesGetObject  = 6 // IWbemServices
	servicesExecQuery  = 20
	servicesExecMethod = 24

	enumNext = 4 // IEnumWbemClassObject

	classGet       = 4 // IWbemClassObject
	classPut       = 5
	classBegin     = 8
	classNext      = 9
	classEnd       = 10
	classSpawn     = 15
	classGetMethod = 19

	errorDescription = 5 // IErrorInfo::GetDescription
)

// Flags of wbemcli.h and values of COM's security.
const (
	flagReturnImmediately = 0x10
	flagForwardOnly       = 0x20
	flagNonSystemOnly     = 0x40
	flagConnectMaxWait    = 0x80

	apartmentMultithreaded = 0
	contextInproc          = 1
	authnDefaultService    = 0xffffffff
	authnPacketPrivacy     = 6
	authnDefault           = 0
	impersonate            = 3
)
