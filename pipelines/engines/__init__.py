"""Flink and Spark, which run a pipeline through Beam's job servers, programs in Java.

fetch.py       the job servers and small clusters of both, into a folder
job_server.py  a job server that runs while a pipeline needs it
flink.py       what Flink has to be told
spark.py       what Spark has to be told
boot.py        a worker process
"""
