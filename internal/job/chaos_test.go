package job

const replicaEnv = "HOLDFAST_JOB_TEST_REPLICA"

func replicaMain(string) {}
