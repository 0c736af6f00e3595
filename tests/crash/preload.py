"""What the server of lives imports once, so that no life has to. Importing launches nothing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import openai
import psycopg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite

import durable_swarm
import durable_swarm.testing
import tests.crash.disk
import tests.crash.lives
import tests.crash.scenarios

__all__ = ["asyncio", "durable_swarm", "logging", "openai", "psycopg", "sqlalchemy", "sqlite3", "tests"]
