"""Slack as the way to people."""

from controller.adapters.slack.mentions import mentions
from controller.adapters.slack.notifier import SlackNotifier, check_socket, check_token
from controller.adapters.slack.threads import MemoryThreads, PostgresThreads, ThreadStore

__all__ = ["MemoryThreads", "PostgresThreads", "SlackNotifier", "ThreadStore", "check_socket", "check_token", "mentions"]
