-- +goose Up
create table fabric (
  id       text primary key,
  name     text not null,
  name_key text not null unique,
  type     text not null,
  created  bigint not null
);
create table provider (
  id          text primary key,
  fabric      text not null references fabric (id),
  host        text not null,
  machine_id  text not null,
  roles       text not null,
  version     text not null,
  hypervisor  text not null,
  registered  bigint not null,
  last_seen   bigint not null,
  revoked     integer not null,
  cert_serial text not null,
  prev_serial text not null,
  key_hash    text not null,
  not_after   bigint not null
);
create unique index provider_host on provider (fabric, machine_id, host) where revoked = 0;
create table registration_key (
  id         text primary key,
  fabric     text not null references fabric (id),
  hash       bytea not null,
  one_time   integer not null,
  created    bigint not null,
  expires    bigint not null,
  revoked    integer not null,
  uses       integer not null,
  used_by    text not null,
  created_by text not null
);
create table vm (
  fabric  text not null references fabric (id),
  id      text not null,
  name    text not null,
  agent   text not null,
  running integer not null,
  doc     text not null,
  seen    bigint not null,
  gone    integer not null,
  primary key (fabric, id)
);
create index vm_agent on vm (agent);
create table vm_seen (
  fabric text not null,
  vm     text not null,
  agent  text not null,
  at     bigint not null,
  primary key (fabric, vm, agent)
);
create table network (
  agent    text not null,
  name     text not null,
  isolated integer not null,
  active   integer not null,
  primary key (agent, name)
);
create table policy (
  id         text primary key,
  name       text not null,
  name_key   text not null unique,
  copy_us    bigint not null,
  retain_us  bigint not null,
  app_us     bigint not null,
  start_time text not null,
  storage    text not null,
  created    bigint not null
);
create table mapping (
  fabric        text not null references fabric (id),
  name          text not null,
  name_key      text not null,
  policy        text not null references policy (id),
  target        text not null,
  target_fabric text not null,
  created       bigint not null,
  primary key (fabric, name_key)
);
create table item (
  id              text primary key,
  fabric          text not null references fabric (id),
  name            text not null,
  name_key        text not null,
  vm              text not null,
  vm_name         text not null,
  policy          text not null references policy (id),
  machine         text not null unique,
  gen             bigint not null,
  source_agent    text not null,
  recovery_fabric text not null,
  recovery_agent  text not null,
  disks           text not null,
  protection      text not null,
  failover        text not null,
  test            text not null,
  active          text not null,
  resync          text not null,
  resync_request  text not null,
  paused          integer not null,
  source_stopped  integer not null,
  job             text not null,
  failed_over_to  text not null,
  recovery_vm     text not null,
  test_vm         text not null,
  test_network    text not null,
  health          text not null,
  health_errors   text not null,
  settings        text not null,
  created         bigint not null,
  last_test       bigint not null,
  last_failover   bigint not null,
  last_report     text not null,
  rev             bigint not null,
  unique (fabric, name_key),
  unique (fabric, vm)
);
create index item_source on item (source_agent);
create table status (
  item text primary key references item (id) on delete cascade,
  doc  text not null,
  at   bigint not null
);
create table generation (
  machine   text not null,
  gen       bigint not null,
  agent     text not null,
  reason    text not null,
  base_gen  bigint not null,
  base_n    bigint not null,
  base_hash text not null,
  written   integer not null,
  created   bigint not null,
  primary key (machine, gen)
);
create table point (
  machine     text not null,
  gen         bigint not null,
  n           bigint not null,
  hash        text not null,
  time        bigint not null,
  consistency text not null,
  resync      integer not null,
  dirty       bigint not null,
  data        bigint not null,
  stored      bigint not null,
  primary key (machine, n)
);
create table serving (
  id      text primary key,
  item    text not null references item (id),
  machine text not null,
  gen     bigint not null,
  n       bigint not null,
  agent   text not null,
  kind    text not null,
  vm      text not null,
  booted  integer not null,
  local   integer not null,
  created bigint not null
);
create index serving_item on serving (item);
create table setting (
  name  text primary key,
  value text not null
);
create table principal (
  name    text primary key,
  kind    text not null,
  role    text not null,
  hash    text not null,
  created bigint not null
);
create table token (
  hash      text primary key,
  principal text not null references principal (name) on delete cascade,
  kind      text not null,
  created   bigint not null,
  expires   bigint not null
);
create index token_expires on token (expires);
create table screenshot (
  job     text primary key,
  item    text not null,
  created bigint not null,
  png     bytea not null
);
create table event (
  id     text primary key,
  at     bigint not null,
  kind   text not null,
  item   text not null,
  agent  text not null,
  by_who text not null,
  audit  integer not null,
  text   text not null
);
create index event_item on event (item, id);
create index event_at on event (at);

-- +goose Down
drop table event;
drop table screenshot;
drop table token;
drop table principal;
drop table setting;
drop table serving;
drop table point;
drop table generation;
drop table status;
drop table item;
drop table mapping;
drop table policy;
drop table network;
drop table vm_seen;
drop table vm;
drop table registration_key;
drop table provider;
drop table fabric;
