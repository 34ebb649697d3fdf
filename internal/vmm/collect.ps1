# Holdfast: lists what this VMM server manages, as one JSON object, version 1.
# It reads only: every VMM command in it begins with Get-SC. Written to the
# published reference of the module; not executed on Windows by its authors.
# In: environment HOLDFAST_VMM_SERVER (empty = this machine). Out: ASCII JSON.
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
$stage = 'start'
$notes = New-Object System.Collections.ArrayList

function P($o, $name) {
  if ($null -eq $o) { return $null }
  $m = $o.PSObject.Properties[$name]
  if ($null -eq $m) { return $null }
  return $m.Value
}
function Id($o) { $v = P $o 'ID'; if ($null -eq $v) { return '' }; return ([string]$v).ToLowerInvariant() }
function Str($o, $name) { $v = P $o $name; if ($null -eq $v) { return '' }; return [string]$v }
function Num($o, $name) { $v = P $o $name; if ($null -eq $v) { return 0 }; return [int]$v }
function All($what, $block) {
  try { return @(& $block | Where-Object { $null -ne $_ }) }
  catch { [void]$notes.Add($what + ': ' + $_.Exception.Message); return @() }
}
function Emit($o) {
  $json = ConvertTo-Json -InputObject $o -Depth 12 -Compress
  $ascii = [regex]::Replace($json, '[^\x00-\x7F]', { param($m) '\u{0:x4}' -f [int][char]$m.Value })
  [Console]::Out.WriteLine()
  [Console]::Out.WriteLine($ascii)
  [Console]::Out.Flush()
}
function Vlans($o) {
  return @(@(P $o 'SubnetVLans') | Where-Object { $null -ne $_ } | ForEach-Object {
    @{ subnet = (Str $_ 'Subnet'); vlan = (Num $_ 'VLanID') } })
}
function Groups($o, $name) {
  return @(@(P $o $name) | Where-Object { $null -ne $_ } | ForEach-Object {
    $path = Str $_ 'Path'; if ($path) { $path } else { Str $_ 'Name' } })
}

try {
  $stage = 'module'
  Import-Module -Name virtualmachinemanager -ErrorAction Stop | Out-Null

  $stage = 'connect'
  $name = $env:HOLDFAST_VMM_SERVER
  if (-not $name) { $name = 'localhost' }
  $s = Get-SCVMMServer -ComputerName $name

  $stage = 'clouds'
  $clouds = @(@(Get-SCCloud -VMMServer $s) | ForEach-Object {
    @{ id = (Id $_); name = $_.Name; hostGroups = @(Groups $_ 'HostGroup') } })

  $stage = 'hosts'
  $hosts = @(@(Get-SCVMHost -VMMServer $s) | ForEach-Object {
    $h = $_
    $switches = @(All ('switches of ' + $h.Name) { Get-SCVirtualNetwork -VMMServer $s -VMHost $h } | ForEach-Object {
      $nets = @(@(P $_ 'LogicalNetworks') | Where-Object { $null -ne $_ })
      if ($nets.Count -eq 0) {
        $nets = @(@(P $_ 'VMHostNetworkAdapters') | Where-Object { $null -ne $_ } |
          ForEach-Object { @(P $_ 'LogicalNetworks') } | Where-Object { $null -ne $_ })
      }
      @{ name = $_.Name; logicalNetworks = @($nets | ForEach-Object { Id $_ } | Select-Object -Unique) } })
    @{ id = (Id $h); name = $(if (P $h 'FullyQualifiedDomainName') { Str $h 'FullyQualifiedDomainName' } else { $h.Name })
       cluster = (Str (P $h 'HostCluster') 'Name'); os = (Str (P $h 'OperatingSystem') 'Name')
       hostGroup = (Str (P $h 'VMHostGroup') 'Path'); switches = $switches } })

  $stage = 'logical networks'
  $logical = @(@(Get-SCLogicalNetwork -VMMServer $s) | ForEach-Object {
    $n = $_
    $defs = @(All ('definitions of ' + $n.Name) { Get-SCLogicalNetworkDefinition -VMMServer $s -LogicalNetwork $n } | ForEach-Object {
      @{ id = (Id $_); name = $_.Name; subnets = @(Vlans $_); hostGroups = @(Groups $_ 'HostGroups') } })
    @{ id = (Id $n); name = $n.Name; description = (Str $n 'Description'); virtualized = [bool](P $n 'NetworkVirtualizationEnabled')
       isolated = [bool](P $n 'LogicalNetworkDefinitionIsolation'); definitions = $defs } })

  $stage = 'VM networks'
  $networks = @(@(Get-SCVMNetwork -VMMServer $s) | ForEach-Object {
    $n = $_
    $subs = @(All ('subnets of ' + $n.Name) { Get-SCVMSubnet -VMMServer $s -VMNetwork $n } | ForEach-Object {
      $v = @(Vlans $_)
      @{ id = (Id $_); name = $_.Name; cidrs = @($v | ForEach-Object { $_.subnet } | Where-Object { $_ })
         vlan = $(if ($v.Count -gt 0) { $v[0].vlan } else { 0 }) } })
    @{ id = (Id $n); name = $n.Name; logicalNetwork = (Id (P $n 'LogicalNetwork')); isolation = (Str $n 'IsolationType'); subnets = $subs } })

  $stage = 'storage classifications'
  $storage = @(All 'storage classifications' { Get-SCStorageClassification -VMMServer $s } | ForEach-Object {
    @{ id = (Id $_); name = $_.Name } })

  $stage = 'VMs'
  $vms = @(@(Get-SCVirtualMachine -VMMServer $s) | ForEach-Object {
    $vm = $_
    $nics = @(All ('adapters of ' + $vm.Name) { Get-SCVirtualNetworkAdapter -VMMServer $s -VM $vm } | ForEach-Object {
      $sub = P $_ 'VMSubnet'
      @{ id = (Id $_); mac = $(if (P $_ 'MACAddress') { Str $_ 'MACAddress' } else { Str $_ 'PhysicalAddress' })
         vmNetwork = (Id (P $_ 'VMNetwork')); vmSubnet = (Str $sub 'Name'); vlan = $(if (P $_ 'VLanEnabled') { Num $_ 'VLanID' } else { 0 }) } })
    @{ id = (Str $vm 'VMId'); vmmId = (Id $vm); name = $vm.Name; cloud = (Id (P $vm 'Cloud'))
       host = $(if (P (P $vm 'VMHost') 'FullyQualifiedDomainName') { Str (P $vm 'VMHost') 'FullyQualifiedDomainName' } else { Str (P $vm 'VMHost') 'Name' })
       adapters = $nics } })

  $stage = 'output'
  Emit @{ version = 1; taken = (Get-Date).ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ssZ')
    server = @{ name = $(if (P $s 'FQDN') { Str $s 'FQDN' } else { Str $s 'Name' }); product = (Str $s 'ProductVersion') }
    clouds = $clouds; hosts = $hosts; logicalNetworks = $logical; vmNetworks = $networks
    storageClassifications = $storage; vms = $vms; warnings = @($notes) }
  exit 0
} catch {
  Emit @{ version = 1; error = @{ stage = $stage; message = [string]$_.Exception.Message } }
  exit 3
}
