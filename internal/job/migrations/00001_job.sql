-- +goose Up
-- due is the time from which any replica may claim the job: its not_before while
-- ready, its lease while running, its bound while waiting.
create table job (
  id          text primary key,
  kind        text not null,
  item        text not null,
  target_type text not null,
  target_name text not null,
  input       text not null,
  meta        text not null,
  by_whom     text not null,
  state       text not null,
  outcome     text not null,
  cur         bigint not null,
  due         bigint not null,
  owner       text not null,
  epoch       bigint not null,
  wait_kind   text not null,
  wait_for    text not null,
  wait_until  bigint not null,
  cancel_at   bigint not null,
  cancel_by   text not null,
  err         text not null,
  created     bigint not null,
  started     bigint not null,
  finished    bigint not null,
  updated     bigint not null
);
create unique index job_one_per_item on job(item) where item <> '' and state in ('ready','running','waiting');
create index job_due on job(due) where state in ('ready','running','waiting');
create index job_created on job(created, id);
create index job_item on job(item, created);

create table job_step (
  job         text not null references job(id) on delete cascade,
  idx         bigint not null,
  name        text not null,
  title       text not null,
  on_fail     boolean not null,
  max_attempts bigint not null,
  state       text not null,
  attempt     bigint not null,
  base        bigint not null,
  out         text not null,
  pct         double precision not null,
  note        text not null,
  started     bigint not null,
  finished    bigint not null,
  primary key (job, idx)
);

create table job_failure (
  job     text not null references job(id) on delete cascade,
  idx     bigint not null,
  attempt bigint not null,
  class   text not null,
  kind    text not null,
  code    text not null,
  message text not null,
  hint    text not null,
  at      bigint not null
);
create index job_failure_job on job_failure(job, idx, attempt);

create table job_signal (
  job     text not null references job(id) on delete cascade,
  seq     bigint not null,
  name    text not null,
  payload text not null,
  by_whom text not null,
  at      bigint not null,
  taken   boolean not null,
  primary key (job, seq)
);

create table job_command (
  id       text primary key,
  agent    text not null,
  job      text not null references job(id) on delete cascade,
  idx      bigint not null,
  attempt  bigint not null,
  kind     text not null,
  payload  text not null,
  state    text not null,
  deadline bigint not null,
  cancel_at bigint not null,
  pct      double precision not null,
  note     text not null,
  result   text not null,
  err      text not null,
  created  bigint not null,
  updated  bigint not null
);
create index job_command_agent on job_command(agent, created) where state in ('open','running');
create index job_command_job on job_command(job, idx, attempt);

create table job_replica (
  id       text primary key,
  host     text not null,
  handlers text not null,
  started  bigint not null,
  lease_until bigint not null
);
