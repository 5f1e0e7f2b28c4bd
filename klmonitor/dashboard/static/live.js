// Starts the page on data that a host serves beside it.
"use strict";
KLM.start(KLM.live("api/"));
