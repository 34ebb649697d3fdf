-- +goose Up
create table thing (
  id   text primary key,
  at   bigint not null default 0,
  body bytea,
  doc  text,
  flag boolean not null default false
);
