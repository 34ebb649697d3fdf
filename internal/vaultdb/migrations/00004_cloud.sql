-- +goose Up
create table compute_size (
  agent text primary key references provider (id),
  doc   text not null
);
create table warm (
  item     text primary key references item (id),
  agent    text not null,
  serving  text not null,
  gen      bigint not null,
  n        bigint not null,
  held_gen bigint not null,
  held_n   bigint not null,
  held_at  bigint not null,
  told_at  bigint not null,
  bytes    bigint not null,
  requests bigint not null,
  busy     integer not null,
  problem  text not null
);

-- +goose Down
drop table warm;
drop table compute_size;
