"""The stock client of modelexpress, unmodified, at work: `stock_client.py SCENARIO ADDRESS [PARAMETER ...]` prints one line of JSON.

The package's own __init__ imports PyTorch for its loaders; its client does not need that, so the modules are imported without it.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
import time
import types

spec = importlib.util.find_spec("modelexpress")
package = types.ModuleType("modelexpress")
package.__path__ = list(spec.submodule_search_locations)
package.__spec__ = spec
sys.modules["modelexpress"] = package

import grpc
from modelexpress import p2p_pb2, source_selection
from modelexpress.client import MxClient
from modelexpress.metadata import payload, source_id, worker_server
from modelexpress.metadata.client_factory import create_metadata_client
from modelexpress.metadata.publisher import PublisherThread

READY = p2p_pb2.SOURCE_STATUS_READY
HAS_TOPOLOGY = "topology" in p2p_pb2.WorkerMetadata.DESCRIPTOR.fields_by_name
HAS_SOURCE_LOAD = "source_load" in p2p_pb2.UpdateStatusRequest.DESCRIPTOR.fields_by_name


def identity(**change):
    fields = dict(
        mx_version="0.7.0",
        model_name="org/Stock-Model",
        backend_framework=p2p_pb2.BACKEND_FRAMEWORK_VLLM,
        tensor_parallel_size=8,
        pipeline_parallel_size=1,
        dtype="bfloat16",
        quantization="FP8",
        extra_parameters={"Key": "Value", "training_step": "42", "10": "ten"},
        revision="E815299B0BCBAC849FAA05B5B9A7C2A1F0B5F1F0",
    )
    fields.update(change)
    return p2p_pb2.SourceIdentity(**fields)


def full_worker(**change):
    """Every field that a worker of this version has, numbers at their limits."""
    fields = dict(
        worker_rank=3,
        nixl_metadata=bytes(range(256)) * 64,
        status=p2p_pb2.SOURCE_STATUS_INITIALIZING,
        metadata_endpoint="10.0.0.1:5555",
        agent_name="nixl-agent",
        worker_grpc_endpoint="",
        accelerator="cuda",
        tensor_source=p2p_pb2.TensorSourceMetadata(
            tensors=[
                p2p_pb2.TensorDescriptor(name="layers.0.w", addr=2**64 - 1, size=2**63 + 1, device_id=7, dtype="torch.bfloat16"),
                p2p_pb2.TensorDescriptor(name="", addr=0, size=0),
            ]
        ),
    )
    if HAS_TOPOLOGY:
        fields["topology"] = {"rack": "r7", "block": "b1"}
    fields.update(change)
    return p2p_pb2.WorkerMetadata(**fields)


def refusal(call):
    """Name of the gRPC code that the call ends with, and its words."""
    try:
        call()
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return ["OK", ""]


def shown(instance):
    return {
        "workerId": instance.worker_id,
        "sourceId": instance.mx_source_id,
        "rank": instance.worker_rank,
        "model": instance.model_name,
        "accelerator": instance.accelerator,
        "topology": dict(instance.topology) if HAS_TOPOLOGY else None,
        "load": instance.source_load if HAS_SOURCE_LOAD and instance.HasField("source_load") else None,
        "step": instance.training_step if instance.HasField("training_step") else None,
    }


def without_live_fields(worker):
    copy = p2p_pb2.WorkerMetadata()
    copy.CopyFrom(worker)
    copy.ClearField("status")
    copy.ClearField("updated_at")
    return copy


def round_trip(address):
    """Publish, list, get, update: everything that was published comes back."""
    client = create_metadata_client(server_url=f"http://{address}")
    said = {"client": type(client).__name__, "intact": {}}
    published = identity()
    workers = {
        "tensors": full_worker(),
        "session": full_worker(transfer_engine_session_id="10.0.0.1:1234"),
        "artifact": full_worker(
            artifact_source=p2p_pb2.ArtifactSourceMetadata(artifact_id="a", total_size=2**64 - 1, file_count=3, chunk_count=4, node_rank=5)
        ),
        "deprecated": full_worker(tensors=[p2p_pb2.TensorDescriptor(name="old", addr=2**63, size=1)]),
        "large": full_worker(nixl_metadata=os.urandom(1_400_000)),
    }
    for worker_id, worker in workers.items():
        given = client.publish_metadata(published, worker, worker_id)
        said["sourceId"] = given
        got = client.get_metadata(given, worker_id)
        said["intact"][worker_id] = (
            got.found and got.identity == published and without_live_fields(got.worker) == without_live_fields(worker)
        )
        said["intact"][worker_id] &= payload.worker_tensor_count(got.worker) == payload.worker_tensor_count(worker)
    said["readyBefore"] = len(client.list_sources(published, READY).instances)
    said["allBefore"] = len(client.list_sources(published).instances)
    load = {"source_load": 0.0} if HAS_SOURCE_LOAD else {}
    said["updated"] = client.update_status(given, "tensors", 3, READY, **load)
    said["ready"] = [shown(instance) for instance in client.list_sources(published, READY).instances]
    again = client.get_metadata(given, "tensors").worker
    said["survivesHeartbeat"] = without_live_fields(again) == without_live_fields(workers["tensors"])
    said["status"] = p2p_pb2.SourceStatus.Name(again.status)
    said["fresh"] = abs(again.updated_at / 1000 - time.time()) < 60
    said["unknown"] = client.update_status(given, "nobody", 3, READY)
    said["missing"] = client.get_metadata(given, "nobody").found
    try:
        client.publish_metadata(identity(model_name=""), full_worker(), "w")
    except RuntimeError as error:
        said["refused"] = str(error)
    client.close()
    return said


def source_ids(address):
    """The id that the server gives is the one that the client itself computes."""
    client = MxClient(server_url=address)
    identities = [
        identity(),
        identity(extra_parameters={"Foo": "a", "foo": "b", "9": "x", "10": "y", "__proto__": "Z"}),
        identity(cuda_version="12.9", torch_version="2.9.0+CU129", gpu_arch="SM100", compile_config_digest="AbC"),
        identity(mx_source_type=p2p_pb2.MX_SOURCE_TYPE_DEEP_GEMM_CACHE, model_name='quotes " and \\ and \t\x01', revision=""),
        p2p_pb2.SourceIdentity(model_name="m"),
    ]
    return [
        [client.publish_metadata(one, full_worker(), "ids"), source_id.compute_mx_source_id(one)] for one in identities
    ]


def heartbeats(address):
    """A publisher's thread as an engine has it, until its input ends. Says each change of the status that it reads back."""
    client = MxClient(server_url=address)
    published = identity(revision="heartbeats")
    count = {"publishes": 0}

    def publish():
        count["publishes"] += 1
        return client.publish_metadata(published, full_worker(), "beating")

    more = {"source_load_provider": lambda: 0.5} if HAS_SOURCE_LOAD else {}
    thread = PublisherThread(client, worker_id="beating", worker_rank=3, publish_fn=publish, interval_secs=1, **more)
    thread.start()
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    reader = MxClient(server_url=address)
    told = None
    while not over.wait(0.05):
        try:
            ready = [shown(one) for one in reader.list_sources(published, READY).instances]
        except grpc.RpcError:
            ready = "away"
        now = ready if ready == "away" else "ready" if ready else "none"
        if now != told:
            told = now
            print(json.dumps({"now": now, "publishes": count["publishes"], "ready": ready}), flush=True)
    thread.stop()
    status = reader.get_metadata(thread.mx_source_id, "beating").worker.status
    return {"stopped": p2p_pb2.SourceStatus.Name(status), "publishes": count["publishes"]}


def agent_source(address, model):
    """What an agent announces, as a stock target finds and reads it."""
    client = MxClient(server_url=address)
    own = p2p_pb2.SourceIdentity(model_name=model, extra_parameters={"weightline.kind": "files"})
    instances = client.list_sources(own, READY).instances
    said = {"instances": [shown(one) for one in instances]}
    said["computed"] = source_id.compute_mx_source_id(own)
    said["withoutKind"] = len(client.list_sources(p2p_pb2.SourceIdentity(model_name=model), READY).instances)
    [instance] = instances
    got = client.get_metadata(instance.mx_source_id, instance.worker_id)
    said["got"] = {
        "found": got.found,
        "kind": got.identity.extra_parameters["weightline.kind"],
        "accelerator": got.worker.accelerator,
        "status": p2p_pb2.SourceStatus.Name(got.worker.status),
        "endpoint": got.worker.worker_grpc_endpoint,
    }
    taken = inspect.signature(payload.accelerators_compatible).parameters
    facts = dict(mx_source_type=own.mx_source_type, quantization="", dtype="bfloat16")
    known = {name: fact for name, fact in facts.items() if name in taken}
    said["gpuTakesIt"] = payload.accelerators_compatible("cuda", instance.accelerator, **known)
    endpoint = got.worker.worker_grpc_endpoint
    takes_id = "worker_id" in inspect.signature(worker_server.fetch_tensor_manifest).parameters
    worker = {"worker_id": instance.worker_id} if takes_id else {}
    tensors, _ = worker_server.fetch_tensor_manifest(endpoint, instance.mx_source_id, **worker)
    said["tensors"] = [[one.name, one.dtype, one.size] for one in tensors]
    said["mismatch"] = refusal(lambda: worker_server.fetch_tensor_manifest(endpoint, "0" * 16))
    said["artifact"] = refusal(lambda: worker_server.fetch_artifact_manifest_header(endpoint, instance.mx_source_id, "a"))
    if hasattr(worker_server, "prepare_tensor_read"):
        lease, _ = worker_server.prepare_tensor_read(endpoint, instance.mx_source_id, worker_id=instance.worker_id)
        said["leased"] = [one.name for one in lease.manifest.tensors]
        lease.release()
        lease.release()
        lease.close()
        said["otherWorker"] = refusal(
            lambda: worker_server.prepare_tensor_read(endpoint, instance.mx_source_id, worker_id="other")
        )
    return said


def without_server(address, model):
    """The backend that asks workers alone, behind a Kubernetes Service: its one address is an agent's."""
    os.environ["MX_METADATA_BACKEND"] = "k8s-service"
    os.environ["MX_K8S_SERVICE_PATTERN"] = address
    os.environ["MX_K8S_SERVICE_BACKOFF_SECONDS"] = "0.01"
    own = p2p_pb2.SourceIdentity(model_name=model, extra_parameters={"weightline.kind": "files"})
    client = create_metadata_client(worker_rank=0)
    [instance] = client.list_sources(own, READY).instances
    got = client.get_metadata(instance.mx_source_id, instance.worker_id)
    said = {
        "client": type(client).__name__,
        "found": got.found,
        "accelerator": got.worker.accelerator,
        "agent": got.worker.agent_name,
        "tensors": [one.name for one in payload.worker_tensor_descriptors(got.worker)],
        "unknown": refusal(lambda: client.get_metadata("0" * 16, "")),
    }
    try:
        create_metadata_client(worker_rank=1).get_metadata(instance.mx_source_id, "")
    except RuntimeError as error:
        said["otherRank"] = str(error)
    return said


def selection(address):
    """The stock selectors over what List gives: a measured load of 0 beats an unknown one, which beats 1."""
    client = MxClient(server_url=address)
    published = identity(revision="selection")
    for worker_id, load in (("idle", 0.0), ("unknown", None), ("busy", 1.0)):
        given = client.publish_metadata(published, full_worker(), worker_id)
        client.update_status(given, worker_id, 3, READY, source_load=load)
    context = types.SimpleNamespace(identity=published, worker_id="target", worker_rank=3)
    os.environ["MX_P2P_LOAD_WEIGHT"] = "100"
    instances = list(client.list_sources(published, READY).instances)
    ordered = source_selection.get_selector("load_aware").order(instances, context)
    return [one.worker_id for one in ordered]


def models(address):
    """The model cache's client hears at once that there is none."""
    model_client = importlib.import_module("modelexpress.model_client")
    client = model_client.ModelCacheClient(server_url=address)
    started = time.monotonic()
    said = {
        "ensure": refusal(lambda: client.ensure_downloaded("m")),
        "list": refusal(lambda: client.list_files("m")),
    }
    said["quick"] = time.monotonic() - started < 10
    return said


def race(address, worker_id):
    """Lists and gets one READY worker in a tight loop until its input ends; says "reading", and what it saw."""
    client = MxClient(server_url=address)
    published = identity(revision="race")
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    rounds = missed = 0
    versions = set()
    while not over.is_set():
        instances = client.list_sources(published, READY).instances
        if [one.worker_id for one in instances] != [worker_id]:
            missed += 1
        else:
            got = client.get_metadata(instances[0].mx_source_id, worker_id)
            missed += got.worker.status != READY
            versions.add(got.worker.agent_name)
        rounds += 1
        if rounds == 1:
            print("reading", flush=True)
    return {"rounds": rounds, "missed": missed, "versions": len(versions)}


def republish(address, worker_id, times):
    """Publishes a READY worker again and again, as a restarted engine would, with every status that a publish may carry."""
    client = MxClient(server_url=address)
    published = identity(revision="race")
    ready = False
    for i in range(int(times) + 1):
        given = client.publish_metadata(published, full_worker(agent_name=f"version {i}", status=i % 3), worker_id)
        if not ready:
            ready = client.update_status(given, worker_id, 3, READY)
            print("ready", flush=True)
            sys.stdin.readline()
    return {"publishes": int(times), "ready": ready}


def reflection(address):
    """Descriptors by grpcio-reflection alone, and a call made with them."""
    from google.protobuf import descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    channel = grpc.insecure_channel(address)
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    said = {"services": sorted(database.get_services()), "methods": {}}
    for name in said["services"]:
        service = pool.FindServiceByName(name)
        said["methods"][name] = sorted(method.name for method in service.methods)
    check = pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Check"]
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(check.output_type).FromString,
    )
    said["health"] = call(message_factory.GetMessageClass(check.input_type)()).status
    return said


def main():
    name, address, *parameters = sys.argv[1:]
    print(json.dumps(SCENARIOS[name](address, *parameters)), flush=True)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (round_trip, source_ids, heartbeats, agent_source, without_server, selection, models, race, republish, reflection)
}

main()
