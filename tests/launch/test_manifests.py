"""launch/*.yaml: their schemas as far as they are to be had, and that nodes and processes count alike."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest
import yaml

from tests.launch.commands_on_path import write_command

pytestmark = pytest.mark.quick
ARGUMENTS = "import json, sys\nprint(json.dumps(sys.argv[1:]))"


def called(script: str, folder: pathlib.Path, **variables: str) -> list[str]:
    """The arguments that a script calls Python with."""
    write_command(folder / "bin", "python", ARGUMENTS)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), **variables}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestJobSet:
    @pytest.fixture
    def jobset(self, repo) -> dict:
        return yaml.safe_load((repo / "launch" / "gke_jobset.yaml").read_text())

    @pytest.fixture
    def job(self, jobset) -> dict:
        (replicated,) = jobset["spec"]["replicatedJobs"]
        return replicated

    @pytest.fixture
    def container(self, job) -> dict:
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        return container

    def test_its_jobs_are_jobs_of_kubernetes(self, job):
        validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}, **job["template"]}
        validate.validate(manifest, validate.latest_version(), strict=True)
        manifest["spec"] = manifest["spec"] | {"nodes": 2}
        with pytest.raises(validate.ValidationError):
            validate.validate(manifest, validate.latest_version(), strict=True)

    def test_the_rest_has_the_fields_of_jobset(self, jobset, job):
        """Those of v1alpha2 that the file uses, from JobSet's custom resource definition."""
        assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        assert set(jobset["spec"]) <= {"failurePolicy", "replicatedJobs", "network", "coordinator", "suspend"}
        assert set(job) <= {"name", "replicas", "template"}
        assert set(jobset["spec"]["failurePolicy"]) <= {"maxRestarts", "restartStrategy", "rules"}
        for rule in jobset["spec"]["failurePolicy"]["rules"]:
            assert set(rule) <= {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
            assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")

    def test_bad_input_ends_the_set_and_nothing_else_does(self, jobset, job):
        (rule,) = jobset["spec"]["failurePolicy"]["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
        (pods,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
        assert (pods["action"], pods["onExitCodes"]["operator"], pods["onExitCodes"]["values"]) == (
            "FailJob",
            "In",
            [2],
        )

    def test_every_pod_is_a_process(self, job, container, tmp_path, train_takes):
        spec, variables = job["template"]["spec"], {one["name"]: one["value"] for one in container["env"]}
        nodes = variables["NODES"]
        assert nodes == str(spec["parallelism"]) == str(spec["completions"]) and spec["completionMode"] == "Indexed"
        taken = train_takes(called(container["args"][0], tmp_path, JOB_COMPLETION_INDEX="1", **variables))
        assert taken["processes"] == ("gadjax-train-0-0.gadjax:1234", int(nodes), 1)
        assert (taken["workdir"], taken["config"].data.train) == ("/runs/mine", "/runs/teacher.parquet")

    def test_the_coordinator_is_the_first_pod(self, jobset, job, container):
        """JobSet names a pod SET-JOB-REPLICA-POD in the network SET."""
        variables = {one["name"]: one["value"] for one in container["env"]}
        name = jobset["metadata"]["name"]
        assert variables["COORDINATOR"].partition(":")[0] == f"{name}-{job['name']}-0-0.{name}"

    def test_every_mount_has_a_volume(self, job, container):
        volumes = {one["name"] for one in job["template"]["spec"]["template"]["spec"]["volumes"]}
        assert {one["name"] for one in container["volumeMounts"]} == volumes

    def test_signals_reach_python(self, container):
        """Bash, the pod's first process, would keep SIGTERM to itself."""
        assert container["args"][0].startswith("exec python ")


class TestSkyPilot:
    @pytest.fixture
    def task(self, repo) -> dict:
        return yaml.safe_load((repo / "launch" / "skypilot.yaml").read_text())

    def test_its_fields_are_skypilots(self, task):
        """Those that the file uses, from the schema of SkyPilot 0.14."""
        assert set(task) <= {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
        assert set(task["resources"]) <= {"infra", "accelerators", "use_spot", "job_recovery"}
        assert set(task["resources"]["job_recovery"]) <= {"strategy", "recover_on_exit_codes"}
        assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
        assert all(isinstance(value, str) for value in task["envs"].values())

    def test_every_node_is_a_process(self, task, tmp_path, train_takes):
        nodes = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
        (tmp_path / "gadjax-env").symlink_to(tmp_path)  # whose bin/python notes its arguments
        taken = train_takes(called(task["run"], tmp_path, **task["envs"], **nodes))
        assert taken["processes"] == ("10.0.0.5:1234", 2, 1)
        assert taken["workdir"] == "/runs/mine"
        assert taken["config"].student == "Qwen/Qwen2.5-7B-Instruct"

    @pytest.mark.parametrize("part", ["setup", "run"])
    def test_its_scripts_are_bash(self, task, part):
        assert subprocess.run(["bash", "-n", "-c", task[part]], capture_output=True).returncode == 0
