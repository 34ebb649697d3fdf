-- +goose Up
create table managed (
  fabric text not null references fabric (id),
  kind   text not null,
  id     text not null,
  name   text not null,
  cloud  text not null,
  doc    text not null,
  primary key (fabric, kind, id)
);
create table network_mapping (
  fabric        text not null references fabric (id),
  network       text not null,
  name          text not null,
  name_key      text not null,
  target_fabric text not null,
  target        text not null,
  created       bigint not null,
  primary key (fabric, network, name_key)
);
create unique index network_mapping_target on network_mapping (fabric, network, target_fabric);
create table storage_mapping (
  fabric         text not null references fabric (id),
  classification text not null,
  name           text not null,
  name_key       text not null,
  target_fabric  text not null,
  target         text not null,
  created        bigint not null,
  primary key (fabric, classification, name_key)
);
alter table mapping add column container text not null default '';

-- +goose Down
alter table mapping drop column container;
drop table storage_mapping;
drop index network_mapping_target;
drop table network_mapping;
drop table managed;
