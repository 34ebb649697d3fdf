-- +goose Up
alter table policy add column settings text not null default '';
alter table item add column more text not null default '';
alter table generation add column seeded integer not null default 0;
alter table generation add column base_disks text not null default '';
alter table point add column note text not null default '';
alter table point add column group_id text not null default '';
alter table point add column group_seq bigint not null default 0;
alter table point add column group_size bigint not null default 0;
create index point_group on point (group_id, group_seq);
create table point_label (
  machine text not null,
  gen     bigint not null,
  n       bigint not null,
  name    text not null,
  held    integer not null,
  by_who  text not null,
  at      bigint not null,
  primary key (machine, gen, n)
);
create table item_doc (
  item text not null references item (id) on delete cascade,
  kind text not null,
  doc  text not null,
  at   bigint not null,
  primary key (item, kind)
);
create table duty (
  name  text primary key,
  owner text not null,
  until bigint not null
);
create table consistency_group (
  id       text primary key,
  name     text not null,
  name_key text not null unique,
  fabric   text not null references fabric (id) on delete cascade,
  created  bigint not null
);
create table group_member (
  item     text primary key references item (id) on delete cascade,
  group_id text not null references consistency_group (id) on delete cascade
);
create index group_member_group on group_member (group_id);

-- +goose Down
drop table group_member;
drop table consistency_group;
drop table duty;
drop table item_doc;
drop table point_label;
drop index point_group;
alter table point drop column group_size;
alter table point drop column group_seq;
alter table point drop column group_id;
alter table point drop column note;
alter table generation drop column base_disks;
alter table generation drop column seeded;
alter table item drop column more;
alter table policy drop column settings;
