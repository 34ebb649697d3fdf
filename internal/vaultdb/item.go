package vaultdb

import (
	"context"
	"reflect"
	"time"

	"holdfast/internal/dr"
	"holdfast/internal/sqldb"
)

// Item is a protected item with what only the vault needs to know about it.
type Item struct {
	dr.ProtectedItem
	ResyncRequest string // id of the last resynchronization asked for
	SourceStopped bool   // a failover has shut the source VM down
	More          More
}

// More is what an item has beyond its columns. It is a durable form.
type More struct {
	PauseReason  string    `json:"pauseReason,omitempty"`
	ResumeAt     time.Time `json:"resumeAt,omitzero"`
	RetryNow     string    `json:"retryNow,omitempty"`     // id of the last request to try at once
	Full         string    `json:"full,omitempty"`         // id of the last request to send everything again
	ResyncReason dr.Code   `json:"resyncReason,omitempty"` // why ResyncRequest was made; empty = somebody wants it now
	ResyncFull   bool      `json:"resyncFull,omitempty"`   // ResyncRequest sends everything again
	Want         *Want     `json:"want,omitempty"`         // a resynchronization that the vault itself found to be due
	Shaped       bool      `json:"shaped,omitempty"`       // Excluded has been filled in
	Excluded     []string  `json:"excluded,omitempty"`     // disks that shall not be replicated
	Missing      []string  `json:"missing,omitempty"`      // replicated disks that the last inventory lacked
	Reopen       string    `json:"reopen,omitempty"`       // why the source agent needs a new generation; empty = it does not
	Seed         bool      `json:"seed,omitempty"`         // protection was begun with a seed
}

// Want says why the vault wants a resynchronization.
type Want struct {
	Code  dr.Code   `json:"code"`
	Text  string    `json:"text"`
	At    time.Time `json:"at"`
	Full  bool      `json:"full,omitempty"`  // what is stored can't be compared with
	Asked bool      `json:"asked,omitempty"` // the agent has been asked for it
	Seen  bool      `json:"seen,omitempty"`  // the agent has begun
}

// Report is what the source agent last said of an item.
type Report struct {
	dr.ReplicationStatus
	NextInitial time.Time // when the initial replication begins or goes on
	Attempt     int       // of what fails with Err
	RetryAt     time.Time
	SentBytes   int64    // since the agent's process started
	CutDisks    []string // of the newest cut
}

// Durable forms of the documents of an item.
type (
	settingsDoc struct {
		RecoveryVMName string `json:"recoveryVmName,omitempty"`
		CPUs           int    `json:"cpus,omitempty"`
		MemoryMB       int    `json:"memoryMb,omitempty"`
		Network        string `json:"network,omitempty"`
		TestNetwork    string `json:"testNetwork,omitempty"`
		Raw            string `json:"raw,omitempty"`

		Cloud *targetDoc `json:"cloud,omitempty"` // since 2026-11-23
	}
	targetDoc struct {
		Size            string            `json:"size,omitempty"`
		ResourceGroup   string            `json:"resourceGroup,omitempty"`
		AvailabilitySet string            `json:"availabilitySet,omitempty"`
		Zone            string            `json:"zone,omitempty"`
		ProximityGroup  string            `json:"proximityGroup,omitempty"`
		DiskType        string            `json:"diskType,omitempty"`
		License         string            `json:"license,omitempty"`
		SecurityGroup   string            `json:"securityGroup,omitempty"`
		PublicIP        bool              `json:"publicIp,omitempty"`
		Tags            map[string]string `json:"tags,omitempty"`
		NICs            []targetNICDoc    `json:"nics,omitempty"`
		Warm            bool              `json:"warm,omitempty"`
		Repair          bool              `json:"repair,omitempty"`
	}
	targetNICDoc struct {
		ID         string `json:"id"`
		Unused     bool   `json:"unused,omitempty"`
		Primary    bool   `json:"primary,omitempty"`
		Subnet     string `json:"subnet,omitempty"`
		IP         string `json:"ip,omitempty"`
		TestSubnet string `json:"testSubnet,omitempty"`
		TestIP     string `json:"testIp,omitempty"`
	}
	healthDoc struct {
		Code     dr.Code   `json:"code,omitempty"`
		Severity dr.Health `json:"severity"`
		Message  string    `json:"message"`
		Cause    string    `json:"cause,omitempty"`
		Remedy   string    `json:"remedy,omitempty"`
		Since    int64     `json:"since"` // Unix µs
	}
	statusDoc struct {
		Phase        string     `json:"phase"`
		Percent      float64    `json:"percent,omitempty"`
		BytesDone    int64      `json:"bytesDone,omitempty"`
		BytesTotal   int64      `json:"bytesTotal,omitempty"`
		ETA          int64      `json:"etaUs,omitempty"`
		BacklogBytes int64      `json:"backlogBytes,omitempty"`
		Spooled      int64      `json:"spooled,omitempty"`
		LastCut      int64      `json:"lastCut,omitempty"`
		Missed       int        `json:"missed,omitempty"`
		Cycles       int        `json:"cycles,omitempty"`
		Err          *healthDoc `json:"err,omitempty"`

		BacklogRate     int64    `json:"backlogRate,omitempty"`
		ShipRate        int64    `json:"shipRate,omitempty"`
		Converging      string   `json:"converging,omitempty"`
		BacklogSeconds  int64    `json:"backlogUs,omitempty"`
		ResyncReason    dr.Code  `json:"resyncReason,omitempty"`
		NextResync      int64    `json:"nextResync,omitempty"`
		ConsistencyNote string   `json:"consistencyNote,omitempty"`
		NextInitial     int64    `json:"nextInitial,omitempty"`
		Attempt         int      `json:"attempt,omitempty"`
		RetryAt         int64    `json:"retryAt,omitempty"`
		SentBytes       int64    `json:"sentBytes,omitempty"`
		CutDisks        []string `json:"cutDisks,omitempty"`
	}
)

func toSettingsDoc(s dr.ItemSettings) settingsDoc {
	d := settingsDoc{RecoveryVMName: s.RecoveryVMName, CPUs: s.CPUs, MemoryMB: s.MemoryMB, Network: s.Network, TestNetwork: s.TestNetwork, Raw: s.Raw}
	c := s.Cloud
	if reflect.ValueOf(c).IsZero() {
		return d
	}
	d.Cloud = &targetDoc{c.Size, c.ResourceGroup, c.AvailabilitySet, c.Zone, c.ProximityGroup, c.DiskType, c.License, c.SecurityGroup, c.PublicIP, c.Tags, nil, c.Warm, c.Repair}
	for _, n := range c.NICs {
		d.Cloud.NICs = append(d.Cloud.NICs, targetNICDoc(n))
	}
	return d
}

func (d settingsDoc) domain() dr.ItemSettings {
	s := dr.ItemSettings{RecoveryVMName: d.RecoveryVMName, CPUs: d.CPUs, MemoryMB: d.MemoryMB, Network: d.Network, TestNetwork: d.TestNetwork, Raw: d.Raw}
	if c := d.Cloud; c != nil {
		s.Cloud = dr.CloudSettings{Size: c.Size, ResourceGroup: c.ResourceGroup, AvailabilitySet: c.AvailabilitySet, Zone: c.Zone, ProximityGroup: c.ProximityGroup, DiskType: c.DiskType,
			License: c.License, SecurityGroup: c.SecurityGroup, PublicIP: c.PublicIP, Tags: c.Tags, Warm: c.Warm, Repair: c.Repair}
		for _, n := range c.NICs {
			s.Cloud.NICs = append(s.Cloud.NICs, dr.CloudNIC(n))
		}
	}
	return s
}

func toHealthDoc(h dr.HealthError) healthDoc {
	return healthDoc{h.Code, h.Severity, h.Message, h.Cause, h.Remedy, sqldb.Micros(h.Since)}
}

func (h healthDoc) domain() dr.HealthError {
	return dr.HealthError{Code: h.Code, Severity: h.Severity, Message: h.Message, Cause: h.Cause, Remedy: h.Remedy, Since: sqldb.Time(h.Since)}
}

const itemColumns = `id, fabric, name, vm, vm_name, policy, machine, gen, source_agent, recovery_fabric, recovery_agent, disks,
	protection, failover, test, active, resync, resync_request, paused, source_stopped, job, failed_over_to, recovery_vm,
	test_vm, test_network, health, health_errors, settings, created, last_test, last_failover, last_report, more`

func scanItem(s scanner) (it Item, err error) {
	var disks, errs, settings, more string
	var paused, stopped int
	var created, lastTest, lastFailover int64
	if err := s.Scan(&it.ID, &it.Fabric, &it.Name, &it.VM, &it.VMName, &it.Policy, &it.Machine, &it.Gen, &it.SourceAgent,
		&it.RecoveryFabric, &it.RecoveryAgent, &disks, &it.Protection, &it.Failover, &it.Test, &it.Active, &it.Resync,
		&it.ResyncRequest, &paused, &stopped, &it.Job, &it.FailedOverTo, &it.RecoveryVM, &it.TestVM, &it.TestNetwork,
		&it.Health, &errs, &settings, &created, &lastTest, &lastFailover, &it.LastTestReport, &more); err != nil {
		return it, err
	}
	if it.Disks, err = decode[[]string](disks); err != nil {
		return it, err
	}
	hs, err := decode[[]healthDoc](errs)
	if err != nil {
		return it, err
	}
	for _, h := range hs {
		it.HealthErrors = append(it.HealthErrors, h.domain())
	}
	if it.More, err = decode[More](more); err != nil {
		return it, err
	}
	set, err := decode[settingsDoc](settings)
	it.Settings = set.domain()
	it.Paused, it.SourceStopped = paused != 0, stopped != 0
	it.Created, it.LastTest, it.LastFailover = sqldb.Time(created), sqldb.Time(lastTest), sqldb.Time(lastFailover)
	return it, err
}

func itemHealth(hs []dr.HealthError) string {
	docs := make([]healthDoc, len(hs))
	for i, h := range hs {
		docs[i] = toHealthDoc(h)
	}
	return encode(docs)
}

// InsertItem adds an item; KindConflict if its name or its VM is taken in the fabric.
func InsertItem(ctx context.Context, q sqldb.Querier, it Item) error {
	n, err := exec(ctx, q, "add protected item "+it.Name, `insert into item (`+itemColumns+`, name_key, rev)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
		$24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, 0) on conflict do nothing`,
		it.ID, it.Fabric, it.Name, it.VM, it.VMName, it.Policy, it.Machine, it.Gen, it.SourceAgent, it.RecoveryFabric, it.RecoveryAgent,
		encode(it.Disks), it.Protection, it.Failover, it.Test, it.Active, it.Resync, it.ResyncRequest, flag(it.Paused), flag(it.SourceStopped),
		it.Job, it.FailedOverTo, it.RecoveryVM, it.TestVM, it.TestNetwork, it.Health, itemHealth(it.HealthErrors),
		encode(toSettingsDoc(it.Settings)), sqldb.Micros(it.Created), sqldb.Micros(it.LastTest), sqldb.Micros(it.LastFailover),
		it.LastTestReport, encode(it.More), Key(it.Name))
	if err == nil && n == 0 {
		return exists("vaultdb.InsertItem", "protected item", it.Name)
	}
	return err
}

// UpdateItem stores an item that LockItem returned in the same transaction.
// Identity (id, fabric, name, VM, machine) and health do not change.
func UpdateItem(ctx context.Context, q sqldb.Querier, it Item) error {
	n, err := exec(ctx, q, "store protected item "+it.Name, `update item set policy = $2, gen = $3, source_agent = $4, recovery_fabric = $5,
		recovery_agent = $6, disks = $7, protection = $8, failover = $9, test = $10, active = $11, resync = $12, resync_request = $13,
		paused = $14, source_stopped = $15, job = $16, failed_over_to = $17, recovery_vm = $18, test_vm = $19, test_network = $20,
		settings = $21, last_test = $22, last_failover = $23, last_report = $24, vm_name = $25, more = $26, rev = rev + 1 where id = $1`,
		it.ID, it.Policy, it.Gen, it.SourceAgent, it.RecoveryFabric, it.RecoveryAgent, encode(it.Disks), it.Protection, it.Failover,
		it.Test, it.Active, it.Resync, it.ResyncRequest, flag(it.Paused), flag(it.SourceStopped), it.Job, it.FailedOverTo, it.RecoveryVM,
		it.TestVM, it.TestNetwork, encode(toSettingsDoc(it.Settings)), sqldb.Micros(it.LastTest), sqldb.Micros(it.LastFailover),
		it.LastTestReport, it.VMName, encode(it.More))
	if err == nil && n == 0 {
		return notFound("vaultdb.UpdateItem", "protected item", it.Name)
	}
	return err
}

// SetHealth stores an item's health without touching anything else.
func SetHealth(ctx context.Context, q sqldb.Querier, id dr.ItemID, h dr.Health, errs []dr.HealthError) error {
	_, err := exec(ctx, q, "store health", "update item set health = $2, health_errors = $3 where id = $1", id, h, itemHealth(errs))
	return err
}

// LockItem reads an item and holds its row until the transaction ends.
func LockItem(ctx context.Context, q sqldb.Querier, id dr.ItemID) (Item, error) {
	if _, err := exec(ctx, q, "lock protected item", "update item set rev = rev + 1 where id = $1", id); err != nil {
		return Item{}, err
	}
	return ItemByID(ctx, q, id)
}

// ItemByID finds an item.
func ItemByID(ctx context.Context, q sqldb.Querier, id dr.ItemID) (Item, error) {
	return one(ctx, q, "read protected item", notFound("vaultdb.ItemByID", "protected item", string(id)), scanItem,
		"select "+itemColumns+" from item where id = $1", id)
}

// ItemByName finds an item of a fabric by its name, without case.
func ItemByName(ctx context.Context, q sqldb.Querier, f dr.FabricID, name string) (Item, error) {
	return one(ctx, q, "read protected item "+name, notFound("vaultdb.ItemByName", "protected item", name), scanItem,
		"select "+itemColumns+" from item where fabric = $1 and name_key = $2", f, Key(name))
}

// ItemByMachine finds the item whose replica is kept under a machine id.
func ItemByMachine(ctx context.Context, q sqldb.Querier, m dr.MachineID) (Item, error) {
	return one(ctx, q, "read protected item of machine", notFound("vaultdb.ItemByMachine", "protected item of machine", string(m)), scanItem,
		"select "+itemColumns+" from item where machine = $1", m)
}

// Items lists the items of a fabric, of all fabrics for "".
func Items(ctx context.Context, q sqldb.Querier, f dr.FabricID) ([]Item, error) {
	return list(ctx, q, "list protected items", scanItem,
		"select "+itemColumns+" from item where $1 = '' or fabric = $1 order by vm_name, id", string(f))
}

// ItemsOfSource lists the items that an agent replicates.
func ItemsOfSource(ctx context.Context, q sqldb.Querier, agent dr.AgentID) ([]Item, error) {
	return list(ctx, q, "list protected items of agent", scanItem,
		"select "+itemColumns+" from item where source_agent = $1 order by id", agent)
}

// DeleteItem removes an item with its catalogue, generations, servings and
// status. The objects in the store are not touched.
func DeleteItem(ctx context.Context, q sqldb.Querier, it Item) error {
	for _, s := range []string{
		"delete from item_doc where item = $1",
		"delete from group_member where item = $1",
		"delete from point_label where machine = (select machine from item where id = $1)",
		"delete from point where machine = (select machine from item where id = $1)",
		"delete from generation where machine = (select machine from item where id = $1)",
		"delete from serving where item = $1",
		"delete from warm where item = $1",
		"delete from screenshot where item = $1",
		"delete from status where item = $1",
		"delete from item where id = $1",
	} {
		if _, err := exec(ctx, q, "remove protected item "+it.Name, s, it.ID); err != nil {
			return err
		}
	}
	return nil
}

// SaveStatus stores what the source agent last said. LastPoint is not stored; the catalogue knows it.
func SaveStatus(ctx context.Context, q sqldb.Querier, id dr.ItemID, st Report) error {
	d := statusDoc{Phase: st.Phase, Percent: st.Percent, BytesDone: st.BytesDone, BytesTotal: st.BytesTotal, ETA: us(st.ETA),
		BacklogBytes: st.BacklogBytes, Spooled: st.Spooled, LastCut: sqldb.Micros(st.LastCut), Missed: st.Missed, Cycles: st.Cycles,
		BacklogRate: st.BacklogRate, ShipRate: st.ShipRate, Converging: string(st.Converging), BacklogSeconds: us(st.BacklogSeconds), ResyncReason: st.ResyncReason,
		NextResync: sqldb.Micros(st.NextResync), ConsistencyNote: st.ConsistencyNote, NextInitial: sqldb.Micros(st.NextInitial), Attempt: st.Attempt,
		RetryAt: sqldb.Micros(st.RetryAt), SentBytes: st.SentBytes, CutDisks: st.CutDisks}
	if st.Err != nil {
		e := toHealthDoc(*st.Err)
		d.Err = &e
	}
	_, err := exec(ctx, q, "store replication status", `insert into status (item, doc, at) values ($1, $2, $3)
		on conflict (item) do update set doc = excluded.doc, at = excluded.at`, id, encode(d), sqldb.Micros(st.At))
	return err
}

// Status returns the last status with the time of the newest point; the zero status if there is none yet.
func Status(ctx context.Context, q sqldb.Querier, id dr.ItemID) (Report, error) {
	all, err := statuses(ctx, q, "where i.id = $1", id)
	return all[id], err
}

// Statuses returns the status of every item.
func Statuses(ctx context.Context, q sqldb.Querier) (map[dr.ItemID]Report, error) {
	return statuses(ctx, q, "")
}

func statuses(ctx context.Context, q sqldb.Querier, where string, args ...any) (map[dr.ItemID]Report, error) {
	out := map[dr.ItemID]Report{}
	_, err := list(ctx, q, "read replication status", func(s scanner) (none struct{}, err error) {
		var id dr.ItemID
		var text string
		var at, last int64
		if err := s.Scan(&id, &text, &at, &last); err != nil {
			return none, err
		}
		d, err := decode[statusDoc](text)
		if err != nil {
			return none, err
		}
		st := Report{NextInitial: sqldb.Time(d.NextInitial), Attempt: d.Attempt, RetryAt: sqldb.Time(d.RetryAt), SentBytes: d.SentBytes, CutDisks: d.CutDisks}
		st.ReplicationStatus = dr.ReplicationStatus{Phase: d.Phase, Percent: d.Percent, BytesDone: d.BytesDone, BytesTotal: d.BytesTotal, ETA: dur(d.ETA),
			BacklogBytes: d.BacklogBytes, Spooled: d.Spooled, LastCut: sqldb.Time(d.LastCut), LastPoint: sqldb.Time(last),
			Missed: d.Missed, Cycles: d.Cycles, At: sqldb.Time(at),
			BacklogRate: d.BacklogRate, ShipRate: d.ShipRate, Converging: dr.Convergence(d.Converging), BacklogSeconds: dur(d.BacklogSeconds),
			ResyncReason: d.ResyncReason, NextResync: sqldb.Time(d.NextResync), ConsistencyNote: d.ConsistencyNote}
		if d.Err != nil {
			e := d.Err.domain()
			st.Err = &e
		}
		out[id] = st
		return none, nil
	}, `select i.id, coalesce(s.doc, ''), coalesce(s.at, 0),
		coalesce((select p.time from point p where p.machine = i.machine order by p.n desc limit 1), 0)
		from item i left join status s on s.item = i.id `+where, args...)
	return out, err
}

// SaveScreenshot keeps the console picture of a job's VM.
func SaveScreenshot(ctx context.Context, q sqldb.Querier, job dr.JobID, item dr.ItemID, png []byte, at time.Time) error {
	_, err := exec(ctx, q, "store screenshot", `insert into screenshot (job, item, created, png) values ($1, $2, $3, $4)
		on conflict (job) do update set created = excluded.created, png = excluded.png`, job, item, sqldb.Micros(at), png)
	return err
}

// Screenshot returns the console picture of a job's VM, a PNG.
func Screenshot(ctx context.Context, q sqldb.Querier, job dr.JobID) ([]byte, error) {
	return one(ctx, q, "read screenshot", notFound("vaultdb.Screenshot", "screenshot of job", string(job)),
		func(s scanner) (png []byte, err error) { return png, s.Scan(&png) },
		"select png from screenshot where job = $1", job)
}
