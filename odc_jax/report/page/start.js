startNavigation();
startClusters();
startDialog();
startLists();
startMap();
setGroups(state.g);
